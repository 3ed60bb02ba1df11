"""`python -m pipelines`: compile, run here, submit to a cluster, schedule.

kfp is imported by the commands that need it, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import click

from vitdc.cli import PARAMS_OPTIONS, run_group

RUNNERS = ("process", "container")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Deep clustering as a Kubeflow pipeline.

    The pipeline does what `dvc repro` does, a container per task: on this machine with `run`, on a
    Kubernetes cluster with `submit`. Its parameters are the sections of params.yaml; what it asks
    of the cluster is the section `kubernetes` (`vitdc params kubernetes`).
    """


def main() -> NoReturn:
    """Entry point of `python -m pipelines`, with the exit codes of `vitdc`."""
    run_group(cli, prog_name="python -m pipelines")


def _params_options(command: Any) -> Any:
    command.params.extend(PARAMS_OPTIONS)
    return command


def _load(params_file: Path, overrides: tuple[str, ...]) -> Any:
    from vitdc.config import Params

    return Params.load(params_file, overrides)


@_params_options
@cli.command("compile")
@click.option(
    "--max-rounds",
    type=int,
    metavar="N",
    help="Rounds that the pipeline has room for (default: convergence.max_rounds).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="YAML file to write.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["ir", "manifests"]),
    default="ir",
    show_default=True,
    help="`ir` is what KFP's UI and API take; `manifests` are Kubernetes objects (Pipeline and"
    " PipelineVersion) for kubectl and GitOps.",
)
@click.option("--namespace", metavar="NAME", help="Namespace of the Kubernetes objects.")
def compile_command(
    max_rounds: int | None,
    output: Path,
    file_format: str,
    namespace: str | None,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """Compile the pipeline to a YAML file.

    The values of params.yaml become the defaults of the pipeline's parameters, which the KFP UI
    offers for change; the section `kubernetes` is compiled in.
    """
    params = _load(params_file, overrides)
    from pipelines import compiling

    rounds = params.convergence.max_rounds if max_rounds is None else max_rounds
    pipeline = compiling.build(params, max_rounds=rounds)
    manifests = file_format == "manifests"
    size = compiling.write(pipeline, output, manifests=manifests, namespace=namespace)
    next_step = (
        f"kubectl apply -f {output}" if manifests else "upload it in KFP's UI, or use `submit`"
    )
    click.echo(f"{output}: up to {rounds} rounds, {size / 1000:.0f} KB; {next_step}")


@_params_options
@cli.command("run")
@click.option(
    "--runner",
    type=click.Choice(RUNNERS),
    default="process",
    show_default=True,
    help="Where tasks run: processes of this Python, or containers of the image (Docker or Podman,"
    " found through DOCKER_HOST).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Directory for the results: report.html, metrics.json, clusters.csv and so on.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path(".kfp"),
    show_default=True,
    metavar="DIR",
    help="Directory for the artifacts of all tasks, the cache and the logs.",
)
@click.option(
    "--network",
    default="none",
    show_default=True,
    metavar="NAME",
    help="Network of the containers: `host` lets them reach servers of this machine.",
)
def run_command(
    runner: str,
    output: Path,
    root: Path,
    network: str,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """Run the pipeline on this machine, without a cluster.

    Tasks whose code, parameters and inputs are those of an earlier run are taken from the cache.
    """
    params = _load(params_file, overrides)
    from pipelines import containers, local
    from vitdc.summary import summarize

    if runner == "container":
        with containers.container_runner(params, root=root, network=network) as containers_runner:
            finished = local.run_pipeline(
                params, output=output, root=root, runner=containers_runner
            )
    else:
        finished = local.run_pipeline(params, output=output, root=root)
    click.echo(f"\n{summarize(finished.evaluation)}\n{'logs':>13}: {finished.log}")
