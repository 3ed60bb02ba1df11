"""What a task of the pipeline gets beside its inputs: name, caching, retries, cluster settings."""

from __future__ import annotations

from dataclasses import dataclass

from kfp import dsl, kubernetes

from components.base import IMAGE
from vitdc.config import KubernetesConfig, TaskResources
from vitdc.kubeflow import RUN_VARIABLE, SCRATCH_VARIABLE
from vitdc.tracking import IMAGE_VARIABLE

LABELS = {"app.kubernetes.io/part-of": "vitdc"}
ON_EXIT = {"workflows.argoproj.io/on-exit": "true"}
"""Argo's own label of pods that a terminated run does not end. KFP's exit handlers lack it."""
SCRATCH_PATH = "/scratch"
DATA_PATH = "/data"

_RUN_LABEL = "metadata.labels['pipeline/runid']"  # Kubeflow puts it on every pod

# The key of a ConfigMap or Secret, and the variable it becomes. Kubernetes refuses a pod in which a
# variable comes from two places, and KFP's MLflow plugin sets MLflow's own: ours have other names.
_MLFLOW_ENDPOINT = {"MLFLOW_TRACKING_URI": "VITDC_TRACKING_URI"}
_S3_ENDPOINT = {key: key for key in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")}
_S3_KEYS = {key: key for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
_MLFLOW_KEYS = {
    "MLFLOW_TRACKING_USERNAME": "VITDC_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD": "VITDC_TRACKING_PASSWORD",
}

# What a component needs beyond its inputs. Credentials go only where they are used.
_READS_IMAGES = ("find-version", "prepare")
_RECORDS = ("start-record", "continue-record", "check", "evaluate", "end-record")
_USES_S3 = (*_READS_IMAGES, "evaluate")  # images, and perhaps MLflow's artifacts
_TRAINS = ("pretrain", "retrain")
_USES_SCRATCH = (*_TRAINS, "end-record")
_ALWAYS_RUNS = ("find-version", *_RECORDS)
"""Not cached: what the first finds may have changed, and the others tell MLflow something."""


@dataclass(frozen=True)
class Configure:
    """Gives tasks what `config` says.

    Attributes:
        config: The section of `params.yaml`.
        local: Leave out what only a cluster has; KFP's local runners would warn or wait.
    """

    config: KubernetesConfig
    local: bool = False

    def pipeline_config(self) -> dsl.PipelineConfig | None:
        """Limits of the whole run."""
        if self.local:
            return None
        return dsl.PipelineConfig(
            active_deadline_seconds=round(self.config.timeout_hours * 3600),
        )

    def task(self, task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
        """Configure `task` and show it as `name`."""
        component = task.component_spec.name
        task.set_container_image(self.config.image or IMAGE)
        task.set_caching_options(self.config.caching and component not in _ALWAYS_RUNS)
        task.set_display_name(name)
        if self.local:
            return task
        task.set_retry(
            num_retries=self.config.retries,
            backoff_duration=f"{self.config.retry_delay}s",
            backoff_factor=2,
            backoff_max_duration="600s",
        )
        resources = getattr(self.config.resources, component, self.config.resources.bookkeeping)
        self._set_resources(task, resources)
        self._set_pod(task, LABELS | ON_EXIT if component == "end-record" else LABELS)
        self._set_volumes(task, component, resources)
        self._set_environment(task, component)
        return task

    def _set_resources(self, task: dsl.PipelineTask, resources: TaskResources) -> None:
        task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu_limit)
        task.set_memory_request(resources.memory).set_memory_limit(resources.memory_limit)
        if resources.gpus:
            task.set_accelerator_type(self.config.gpu_resource)
            task.set_accelerator_limit(resources.gpus)
            for toleration in self.config.gpu_tolerations:
                kubernetes.add_toleration(task, **toleration.model_dump())
        selector = self.config.node_selector
        if resources.gpus:
            selector = {**selector, **self.config.gpu_selector}
        for key, value in selector.items():
            kubernetes.add_node_selector(task, key, value)

    def _set_pod(self, task: dsl.PipelineTask, labels: dict[str, str]) -> None:
        user = self.config.user
        kubernetes.set_security_context(
            task, run_as_user=user, run_as_group=user, run_as_non_root=True
        )
        kubernetes.set_image_pull_policy(task, self.config.image_pull_policy)
        if self.config.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(self.config.image_pull_secrets))
        for key, value in labels.items():
            kubernetes.add_pod_label(task, key, value)

    def _set_volumes(
        self, task: dsl.PipelineTask, component: str, resources: TaskResources
    ) -> None:
        size = self.config.temporary_storage
        kubernetes.empty_dir_mount(task, "tmp", "/tmp", size_limit=size)  # noqa: S108
        if self.config.shared_memory and (component == "prepare" or resources.gpus):
            size = self.config.shared_memory
            kubernetes.empty_dir_mount(
                task,
                "shm",
                "/dev/shm",  # noqa: S108
                medium="Memory",
                size_limit=size,
            )
        if self.config.scratch_claim and component in _USES_SCRATCH:
            kubernetes.mount_pvc(task, self.config.scratch_claim, SCRATCH_PATH)
            task.set_env_variable(SCRATCH_VARIABLE, SCRATCH_PATH)
        if self.config.data_claim and component in _READS_IMAGES:
            kubernetes.mount_pvc(task, self.config.data_claim, DATA_PATH)

    def _set_environment(self, task: dsl.PipelineTask, component: str) -> None:
        config = self.config
        if component in _TRAINS:  # by this they find the record of the pipeline run
            kubernetes.use_field_path_as_env(task, RUN_VARIABLE, _RUN_LABEL)
        if component in _RECORDS and config.image:
            task.set_env_variable(IMAGE_VARIABLE, config.image)
        if component in _USES_S3:
            if config.endpoints:
                kubernetes.use_config_map_as_env(task, config.endpoints, _S3_ENDPOINT)
            if config.s3_secret:
                kubernetes.use_secret_as_env(task, config.s3_secret, _S3_KEYS)
        if component in (*_RECORDS, *_TRAINS):
            if config.endpoints:
                kubernetes.use_config_map_as_env(task, config.endpoints, _MLFLOW_ENDPOINT)
            if config.mlflow_secret:
                kubernetes.use_secret_as_env(task, config.mlflow_secret, _MLFLOW_KEYS)
