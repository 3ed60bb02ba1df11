"""Runs of the pipeline on a cluster, with everything that they need there."""

from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import kfp_server_api as api

from pipelines import compiling
from pipelines.cluster.connection import Cluster
from pipelines.cluster.errors import TIMEOUT, UPLOAD_TIMEOUT, explained
from pipelines.deep_clustering import CONTINUED_RUN_ID, NAME, pipeline_parameters
from vitdc.config import Params
from vitdc.errors import InputError


class Submitted(NamedTuple):
    """A run that was started."""

    run_id: str
    url: str
    version: str
    """Name of the pipeline version that it runs."""


class Version(NamedTuple):
    """A pipeline version that the cluster has."""

    pipeline_id: str
    version_id: str
    name: str

    def reference(self) -> api.V2beta1PipelineVersionReference:
        return api.V2beta1PipelineVersionReference(
            pipeline_id=self.pipeline_id, pipeline_version_id=self.version_id
        )


def submit(
    cluster: Cluster,
    pipeline: Any,
    params: Params,
    *,
    experiment: str,
    run_name: str | None = None,
    continued_run_id: str | None = None,
) -> Submitted:
    """Start a run of the pipeline, with everything that it needs created if it is not there.

    Args:
        cluster: From `connect`.
        pipeline: From `compiling.build`, for `params`.
        params: The parameters of the run; `kubernetes.service_account` runs it.
        experiment: Kubeflow's experiment that the run belongs to.
        run_name: Name of the run; by default the pipeline's, with the time.
        continued_run_id: Kubeflow's id of the run that this one continues, if the pipeline does.

    Raises:
        InputError: Kubeflow refuses it, or the pipeline is too large.
    """
    parameters = pipeline_parameters(params)
    if continued_run_id:
        parameters[CONTINUED_RUN_ID] = continued_run_id
    with explained(cluster.host, cluster.namespace):
        version = upload(cluster, pipeline)
        run = cluster.client.runs.run_service_create_run(
            run=api.V2beta1Run(
                experiment_id=find_experiment(cluster, experiment),
                display_name=run_name or f"{NAME} {datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
                pipeline_version_reference=version.reference(),
                runtime_config=api.V2beta1RuntimeConfig(parameters=parameters),
                service_account=params.kubernetes.service_account,
            ),
            _request_timeout=UPLOAD_TIMEOUT,
        )
    return Submitted(run.run_id, cluster.run_url(run.run_id), version.name)


def upload(cluster: Cluster, pipeline: Any) -> Version:
    """The version of the pipeline in the cluster, uploaded if it is not there."""
    name = compiling.version_name(pipeline)
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory) / "pipeline.yaml"
        compiling.write(pipeline, package)
        pipeline_id = _find_pipeline(cluster)
        found = cluster.client.pipelines.pipeline_service_list_pipeline_versions(
            pipeline_id, filter=named(name), _request_timeout=TIMEOUT
        ).pipeline_versions
        version = (
            found[0]
            if found
            else cluster.client.pipeline_uploads.upload_pipeline_version(
                str(package), name=name, pipelineid=pipeline_id, _request_timeout=UPLOAD_TIMEOUT
            )
        )
    return Version(pipeline_id, version.pipeline_version_id, name)


def _find_pipeline(cluster: Cluster) -> str:
    """Id of the pipeline, which is created if there is none of its name."""
    pipelines = cluster.client.pipelines
    try:
        found = pipelines.pipeline_service_get_pipeline_by_name(
            NAME, namespace=cluster.namespace, _request_timeout=TIMEOUT
        )
    except api.ApiException as error:
        if error.status != 404:
            raise
        found = pipelines.pipeline_service_create_pipeline(
            pipeline=api.V2beta1Pipeline(name=NAME, display_name=NAME, namespace=cluster.namespace),
            _request_timeout=TIMEOUT,
        )
    return str(found.pipeline_id)


def find_experiment(cluster: Cluster, name: str) -> str:
    """Id of an experiment, which is created if there is none of this name."""
    experiments = cluster.client.experiments
    found = experiments.experiment_service_list_experiments(
        filter=named(name), namespace=cluster.namespace, _request_timeout=TIMEOUT
    ).experiments
    if not found:
        created = experiments.experiment_service_create_experiment(
            experiment=api.V2beta1Experiment(display_name=name, namespace=cluster.namespace),
            _request_timeout=TIMEOUT,
        )
        return str(created.experiment_id)
    if found[0].storage_state == "ARCHIVED":
        raise InputError(
            f"--experiment {name}: it is archived; restore it in Kubeflow's UI or name another"
        )
    return str(found[0].experiment_id)


def named(name: str) -> str:
    """A filter of Kubeflow's API for things of one name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "string_value": name}
    return json.dumps({"predicates": [predicate]})
