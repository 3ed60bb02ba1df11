"""From `params.yaml` to what Kubeflow takes: the compiled pipeline, checked for its size."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from kfp import compiler

from pipelines.deep_clustering import NAME, Room, build_pipeline
from pipelines.sharing import compact
from pipelines.size import MAX_WORKFLOW, most_rounds, workflow_size
from pipelines.tasks import Configure
from vitdc.code import code_version
from vitdc.config import Params
from vitdc.errors import InputError, mask_credentials


def find_room(params: Params, num_rounds: int | None = None, done: int = 0) -> Room:
    """The rounds that a pipeline shall have room for.

    Args:
        params: `convergence.max_rounds` says how many rounds there may be.
        num_rounds: How many of them it shall have room for; by default for all that are left.
        done: How many rounds the continued run has done.

    Raises:
        InputError: `num_rounds` is not at least 1.
    """
    if num_rounds is not None and num_rounds < 1:
        raise InputError(f"--max-rounds {num_rounds}: at least 1 round is needed")
    left = max(params.convergence.max_rounds - done, 1)
    return Room(first=done + 1, last=done + (num_rounds or left))


def build(params: Params, *, room: Room | None = None, local: bool = False) -> Any:
    """The pipeline for `params`, whose sections become the defaults of its parameters.

    Args:
        params: All parameters; `kubernetes` is compiled in.
        room: The rounds that it has room for; by default `convergence.max_rounds`.
        local: For KFP's local runners, which need nothing of a cluster.

    Raises:
        InputError: `data.repo` has a password in it, or a cluster takes no pipeline of this size.
    """
    if params.data.repo and mask_credentials(params.data.repo) != params.data.repo:
        raise InputError(
            "data.repo: its user or password would stand in the pipeline and in its logs; use an"
            " ssh:// address, or give the tasks a .netrc or a git credential"
        )
    room = room or find_room(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipeline = build_pipeline(
            params,
            room=room,
            code=code_version(),
            configure=Configure(params.kubernetes, local=local),
        )
    if not local:
        compact(pipeline.pipeline_spec, pipeline.platform_spec)
        _check_size(pipeline, params, room)
    return pipeline


def _check_size(pipeline: Any, params: Params, room: Room) -> None:
    num_rounds = room.last - room.first + 1
    size = workflow_size(pipeline, num_rounds)
    if size > MAX_WORKFLOW:
        small = build(params, room=Room(first=room.first, last=room.first))
        most = most_rounds({1: workflow_size(small, 1), num_rounds: size})
        raise InputError(
            f"--max-rounds {num_rounds}: a run of so many rounds needs up to {size:,} bytes where"
            f" Argo Workflows takes {MAX_WORKFLOW:,}; there is room for {most}, and `submit"
            f" --max-rounds {most} --wait --until-converged` goes on in further runs"
        )


def write(
    pipeline: Any,
    output: Path,
    *,
    manifests: bool = False,
    namespace: str | None = None,
) -> int:
    """Write the compiled pipeline.

    Args:
        pipeline: From `build`.
        output: YAML file.
        manifests: Write Kubernetes objects (`Pipeline` and `PipelineVersion`) instead of KFP's own
            format, for `kubectl apply` and GitOps.
        namespace: Of the Kubernetes objects; by default they name none.

    Returns:
        The size of the file in bytes.

    Raises:
        InputError: The file cannot be written.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"--output {output}: name a .yaml file")
    options = compiler.KubernetesManifestOptions(
        pipeline_name=NAME,
        pipeline_version_name=version_name(pipeline, with_defaults=True),
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    with tempfile.TemporaryDirectory() as directory:
        compiled = Path(directory) / "pipeline.yaml"
        compiler.Compiler().compile(
            pipeline,
            str(compiled),
            kubernetes_manifest_format=manifests,
            kubernetes_manifest_options=options if manifests else None,
        )
        size = compiled.stat().st_size
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(compiled, output)
        except OSError as error:
            raise InputError(f"--output {output}: cannot be written: {error.strerror}") from None
    return size


def version_name(pipeline: Any, *, with_defaults: bool = False) -> str:
    """Name of a pipeline's version: the same for the same code and the same cluster settings.

    A hash of the compiled file would not do: the order of its comments changes from process to
    process.

    Args:
        pipeline: From `build`.
        with_defaults: The defaults of its parameters count, too; they do not where a run names all
            parameters itself.
    """
    spec = json_format.MessageToDict(pipeline.pipeline_spec)
    if not with_defaults:
        for parameter in spec["root"]["inputDefinitions"]["parameters"].values():
            parameter.pop("defaultValue", None)
    platform = json_format.MessageToDict(pipeline.platform_spec)
    state = json.dumps([spec, platform], sort_keys=True).encode()
    return f"{NAME}-{hashlib.sha256(state).hexdigest()[:12]}"
