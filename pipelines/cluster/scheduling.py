"""Runs that start again and again."""

from __future__ import annotations

import datetime
from typing import Any, NamedTuple

import kfp_server_api as api

from pipelines.cluster.connection import Cluster
from pipelines.cluster.cron import Cron
from pipelines.cluster.errors import TIMEOUT, UPLOAD_TIMEOUT, explained
from pipelines.cluster.submitting import find_experiment, named, upload
from pipelines.deep_clustering import pipeline_parameters
from vitdc.config import Params
from vitdc.errors import InputError


class Scheduled(NamedTuple):
    """A schedule that was made."""

    recurring_run_id: str
    url: str
    version: str
    """Name of the pipeline version that its runs run."""
    next_time: datetime.datetime | None
    """When it starts the next run, if Kubeflow's time zone is UTC, as it is unless configured."""
    replaced: int
    """How many schedules of its name it replaced."""


def schedule(
    cluster: Cluster,
    pipeline: Any,
    params: Params,
    cron: Cron,
    *,
    name: str,
    experiment: str,
    max_concurrency: int = 1,
    catchup: bool = False,
    replace: bool = False,
) -> Scheduled:
    """Start a run again and again, each with the newest version of the data.

    Args:
        cluster: From `connect`.
        pipeline: From `compiling.build`, for `params`.
        params: The parameters of the runs; `kubernetes.service_account` runs them.
        cron: When.
        name: Name of the schedule.
        experiment: Kubeflow's experiment that the runs belong to.
        max_concurrency: Most runs at a time, 1 to 10.
        catchup: Make up for runs that were missed while the schedule was off.
        replace: Take the place of schedules of this name, which are deleted; their runs stay.

    Raises:
        InputError: There is a schedule of this name already, or Kubeflow refuses.
    """
    recurring_runs = cluster.client.recurring_runs
    with explained(cluster.host, cluster.namespace):
        before = recurring_runs.recurring_run_service_list_recurring_runs(
            filter=named(name),
            namespace=cluster.namespace,
            page_size=100,
            _request_timeout=TIMEOUT,
        ).recurring_runs
        if before and not replace:
            raise InputError(
                f"--name {name}: there is such a schedule; replace it with --replace, choose"
                f" another name, or delete it: {cluster.schedule_url(before[0].recurring_run_id)}"
            )
        version = upload(cluster, pipeline)
        made = recurring_runs.recurring_run_service_create_recurring_run(
            recurring_run=api.V2beta1RecurringRun(
                display_name=name,
                experiment_id=find_experiment(cluster, experiment),
                namespace=cluster.namespace,
                pipeline_version_reference=version.reference(),
                runtime_config=api.V2beta1RuntimeConfig(parameters=pipeline_parameters(params)),
                service_account=params.kubernetes.service_account,
                mode=api.RecurringRunMode.ENABLE,
                trigger=api.V2beta1Trigger(
                    cron_schedule=api.V2beta1CronSchedule(cron=cron.expression)
                ),
                max_concurrency=str(max_concurrency),
                no_catchup=not catchup,
            ),
            _request_timeout=UPLOAD_TIMEOUT,
        )
        for old in before or ():  # only now, so that a failure leaves the schedule that there was
            recurring_runs.recurring_run_service_delete_recurring_run(
                old.recurring_run_id, _request_timeout=TIMEOUT
            )
    return Scheduled(
        recurring_run_id=made.recurring_run_id,
        url=cluster.schedule_url(made.recurring_run_id),
        version=version.name,
        next_time=cron.next_time(datetime.datetime.now(datetime.UTC)),
        replaced=len(before or ()),
    )
