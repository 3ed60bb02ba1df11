"""`python -m pipelines`: compile, run here, submit to a cluster, schedule.

kfp is imported by the commands that need it, so that `--help` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from vitdc.cli import PARAMS_OPTIONS, run_group
from vitdc.errors import InputError

if TYPE_CHECKING:
    from vitdc.config import Params

RUNNERS = ("process", "container")

CLUSTER_OPTIONS = (
    click.Option(
        ["--host"],
        metavar="URL",
        help="Address of Kubeflow Pipelines (default: KF_PIPELINES_ENDPOINT).",
    ),
    click.Option(
        ["--namespace"],
        metavar="NAME",
        help="Namespace of your profile, on a Kubeflow with several users (default:"
        " KFP_NAMESPACE).",
    ),
    click.Option(
        ["--ca-file"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Certificates to trust (default: SSL_CERT_FILE).",
    ),
)
CONTEXT_OPTION = click.Option(
    ["--context"],
    metavar="NAME",
    help="Context of the kubeconfig that reaches the cluster (default: the current one); there the"
    " reasons are found that Kubeflow's API does not have.",
)
MAX_ROUNDS_OPTION = click.Option(
    ["--max-rounds"],
    type=int,
    metavar="N",
    help="Rounds that the pipeline has room for (default: convergence.max_rounds). If they end"
    " before the rounds do, another run continues: see `submit --continue`.",
)
IMAGE_OPTION = click.Option(
    ["--image"],
    metavar="IMAGE",
    help="Image of the tasks, by digest if you can; short for -S kubernetes.image=IMAGE.",
)
PIPELINE_OPTIONS = (
    MAX_ROUNDS_OPTION,
    click.Option(
        ["--experiment"],
        default="vitdc",
        show_default=True,
        metavar="NAME",
        help="Kubeflow's experiment, made if there is none of this name.",
    ),
    IMAGE_OPTION,
)


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


def _object_name(value: str | None) -> str | None:
    """A name that Kubernetes takes."""
    if value is not None and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", value):
        raise click.BadParameter("use small letters, digits and dashes only")
    return value


def _with(*options: click.Option) -> Callable[[click.Command], click.Command]:
    """Add options that several commands have."""

    def add(command: click.Command) -> click.Command:
        command.params.extend(options)
        return command

    return add


def _load(params_file: Path, overrides: tuple[str, ...], image: str | None = None) -> Params:
    from vitdc.config import Params

    if image is not None:
        overrides = (*overrides, f"kubernetes.image={image}")
    return Params.load(params_file, overrides)


@_with(MAX_ROUNDS_OPTION, *PARAMS_OPTIONS)
@cli.command("compile")
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
@click.option(
    "--namespace",
    metavar="NAME",
    callback=lambda ctx, param, value: _object_name(value),
    help="Namespace of the Kubernetes objects.",
)
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

    room = compiling.find_room(params, max_rounds)
    pipeline = compiling.build(params, room=room)
    manifests = file_format == "manifests"
    size = compiling.write(pipeline, output, manifests=manifests, namespace=namespace)
    next_step = (
        f"kubectl apply -f {output}" if manifests else "upload it in KFP's UI, or use `submit`"
    )
    click.echo(f"{output}: room for {room.last} rounds, {size / 1000:.0f} KB; {next_step}")


@_with(*PARAMS_OPTIONS)
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
        params = containers.with_absolute_paths(params)
        root = root / "containers"
        with containers.container_runner(params, root=root, network=network) as containers_runner:
            finished = local.run_pipeline(
                params, output=output, root=root, runner=containers_runner
            )
    else:
        finished = local.run_pipeline(params, output=output, root=root)
    click.echo(f"\n{summarize(finished.evaluation)}\n{'logs':>13}: {finished.log}")


@_with(*CLUSTER_OPTIONS, CONTEXT_OPTION, *PIPELINE_OPTIONS, *PARAMS_OPTIONS)
@cli.command("submit")
@click.option("--run-name", metavar="NAME", help="Name of the run (default: one with the time).")
@click.option(
    "--continue",
    "continued",
    metavar="RUN_ID",
    help="Go on with a run that ran out of room, from its last round, with its parameters and in"
    " the same MLflow run.",
)
@click.option("--wait", is_flag=True, help="Follow the run, and exit by its outcome.")
@click.option(
    "--until-converged",
    is_flag=True,
    help="With --wait: continue a run that ran out of room, until the rounds themselves end.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="With --wait: stop following a run after this time.",
)
def submit_command(
    host: str | None,
    namespace: str | None,
    ca_file: Path | None,
    context: str | None,
    max_rounds: int | None,
    experiment: str,
    image: str | None,
    run_name: str | None,
    continued: str | None,
    wait: bool,
    until_converged: bool,
    timeout: float | None,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """Start a run on a cluster, and print its URL.

    Experiment, pipeline and pipeline version are made if they are not there; the same code and
    settings are the same version. A token is read from KF_PIPELINES_TOKEN, or from the file that
    KF_PIPELINES_SA_TOKEN_PATH names.
    """
    if until_converged and not wait:
        raise click.BadParameter("it needs --wait", param_hint="--until-converged")
    if continued and any(not each.startswith("kubernetes.") for each in overrides):
        raise click.BadParameter(
            "a continued run keeps its parameters; only those of kubernetes can be set",
            param_hint="-S",
        )
    params = _load(params_file, overrides, image)
    from pipelines import cluster, compiling

    found = cluster.connect(host, namespace, ca_file=ca_file)
    done = 0
    if continued:
        params, done = cluster.find_continued(found, continued, params.kubernetes)
    while True:
        room = compiling.find_room(params, max_rounds, done)
        made = cluster.submit(
            found,
            compiling.build(params, room=room),
            params,
            experiment=experiment,
            run_name=run_name,
            continued_run_id=continued,
        )
        click.echo(made.url)
        if not wait:
            return
        ended = cluster.follow(found, made.run_id, context=context, timeout=timeout)
        if not ended.is_out_of_room(room.last):
            return
        if not until_converged:
            click.echo(
                f"out of room after round {room.last}; `submit --continue {made.run_id}` goes on",
                err=True,
            )
            return
        continued, done = made.run_id, room.last


@_with(*CLUSTER_OPTIONS, CONTEXT_OPTION)
@cli.command("follow")
@click.argument("run_id")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop following after this time.",
)
def follow_command(
    host: str | None,
    namespace: str | None,
    ca_file: Path | None,
    context: str | None,
    run_id: str,
    timeout: float | None,
) -> None:
    """Watch the run RUN_ID until it ends, and exit by its outcome; Ctrl-C ends the watching only.

    The id is the last part of the URL that `submit` printed. Where a kubeconfig reaches the
    cluster, or inside it, this also says what a pod waits for and why a task failed.
    """
    from pipelines import cluster

    found = cluster.connect(host, namespace, ca_file=ca_file)
    cluster.follow(found, run_id, context=context, timeout=timeout)


@_with(*CLUSTER_OPTIONS, CONTEXT_OPTION, IMAGE_OPTION, *PARAMS_OPTIONS)
@cli.command("doctor")
def doctor_command(
    host: str | None,
    namespace: str | None,
    ca_file: Path | None,
    context: str | None,
    image: str | None,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """Check a cluster for what the pipeline needs; exit code 2 if something is missing.

    It needs a kubeconfig that reaches the cluster. MLflow and S3 are tried from a pod that is set
    up as the tasks are, and deleted afterwards.
    """
    params = _load(params_file, overrides, image)
    from pipelines import compiling
    from pipelines.cluster import doctor

    marks = {True: "ok", False: "FAIL", None: "?"}
    findings = doctor.examine(
        params,
        compiling.build(params, room=compiling.find_room(params, 1)),  # rounds need the same
        host=host,
        namespace=namespace,
        ca_file=ca_file,
        context=context,
    )
    failed = 0
    for finding in findings:
        click.echo(f"{marks[finding.ok]:<4} {finding.what}: {finding.text}")
        failed += finding.ok is False
    if failed:
        raise InputError(f"{failed} of these must be mended before a run can succeed")


@_with(*CLUSTER_OPTIONS, *PIPELINE_OPTIONS, *PARAMS_OPTIONS)
@cli.command("schedule")
@click.option(
    "--cron",
    "cron_text",
    required=True,
    metavar="EXPRESSION",
    help="When, as in crontab: '0 3 * * 1' is Mondays at three. @daily and the like work, too.",
)
@click.option(
    "--name",
    default="deep-clustering",
    show_default=True,
    metavar="NAME",
    help="Name of the schedule.",
)
@click.option(
    "--max-concurrency",
    type=click.IntRange(1, 10),
    default=1,
    show_default=True,
    metavar="N",
    help="Most runs at a time.",
)
@click.option("--catchup", is_flag=True, help="Make up for runs missed while it was switched off.")
@click.option("--replace", is_flag=True, help="Replace the schedule of this name.")
def schedule_command(
    host: str | None,
    namespace: str | None,
    ca_file: Path | None,
    max_rounds: int | None,
    experiment: str,
    image: str | None,
    cron_text: str,
    name: str,
    max_concurrency: int,
    catchup: bool,
    replace: bool,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """Run again and again on a cluster, each time with the newest version of the data.

    A run that finds the data unchanged takes everything from Kubeflow's cache.
    """
    if not name.strip():
        raise click.BadParameter("a schedule needs a name", param_hint="--name")
    params = _load(params_file, overrides, image)
    from pipelines import cluster, compiling

    cron = cluster.Cron.parse(cron_text)
    pipeline = compiling.build(params, room=compiling.find_room(params, max_rounds))
    made = cluster.schedule(
        cluster.connect(host, namespace, ca_file=ca_file),
        pipeline,
        params,
        cron,
        name=name,
        experiment=experiment,
        max_concurrency=max_concurrency,
        catchup=catchup,
        replace=replace,
    )
    click.echo(made.url)
    if made.next_time:
        replaced = f"; it replaces {made.replaced} of its name" if made.replaced else ""
        click.echo(f"next run at {made.next_time:%Y-%m-%d %H:%M} UTC{replaced}", err=True)


@_with(*PARAMS_OPTIONS)
@cli.command("import-model")
@click.argument("run_id")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="New directory for the model, in a DVC repository.",
)
@click.option("--push", is_flag=True, help="Also upload it to the default DVC remote.")
def import_model_command(
    run_id: str, output: Path, push: bool, params_file: Path, overrides: tuple[str, ...]
) -> None:
    """Bring the model of the run RUN_ID under DVC.

    RUN_ID is the id of the MLflow run, or Kubeflow's id of the pipeline run. MLflow
    (MLFLOW_TRACKING_URI) knows where the model lies; the keys of that store are read from the usual
    AWS variables.
    """
    params = _load(params_file, overrides)
    from pipelines.models import import_model
    from vitdc.summary import describe

    trained = import_model(params.tracking, run_id, output, push=push)
    click.echo(f"{output}: {describe(trained)}")
