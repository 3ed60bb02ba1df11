"""Going on with a run whose pipeline ran out of room for rounds."""

from __future__ import annotations

import re
from typing import NamedTuple

import kfp_server_api as api

from pipelines.cluster.connection import Cluster
from pipelines.cluster.details import describe_state, task_labels
from pipelines.cluster.errors import TIMEOUT, explained
from pipelines.deep_clustering import CONTINUED_RUN_ID, OUT_OF_ROOM
from vitdc.config import KubernetesConfig, Params
from vitdc.errors import InputError

_OUT_OF_ROOM = re.compile(re.escape(OUT_OF_ROOM).replace(r"\{\}", r"(\d+)"))


class Continued(NamedTuple):
    """A run that another one can go on with."""

    params: Params
    """Its parameters, with the section `kubernetes` of the run that goes on."""
    last: int
    """The last round that its pipeline had room for."""


def find_continued(cluster: Cluster, run_id: str, kubernetes: KubernetesConfig) -> Continued:
    """The run that is to be continued, as Kubeflow knows it.

    Whether it ran out of room is known to MLflow; the new run's first task asks there.

    Args:
        cluster: From `connect`.
        run_id: Kubeflow's id of the run.
        kubernetes: What the new run asks of the cluster.

    Raises:
        InputError: There is no such run, it has not ended well, or it is no run of ours.
    """
    problem = f"--continue {run_id}"
    with explained(cluster.host, cluster.namespace):
        try:
            run = cluster.client.runs.run_service_get_run(run_id=run_id, _request_timeout=TIMEOUT)
        except api.ApiException as error:
            if error.status != 404:
                raise
            raise InputError(f"{problem}: there is no such run at {cluster.host}") from None
        names = task_labels(cluster, run).values()
    if run.state != "SUCCEEDED":
        raise InputError(
            f"{problem}: only a run that succeeded has left a round to go on from;"
            f" this one is {describe_state(run)}"
        )
    found = next(filter(None, map(_OUT_OF_ROOM.fullmatch, names)), None)
    if not found:
        raise InputError(f"{problem}: its pipeline cannot be continued; an older vitdc made it")
    given = dict(run.runtime_config.parameters)
    given.pop(CONTINUED_RUN_ID, None)
    params = Params.parse(given, where=f"the parameters of the run {run_id}")
    return Continued(params.model_copy(update={"kubernetes": kubernetes}), int(found[1]))
