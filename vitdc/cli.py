"""The command line: a subcommand per step, generated from the step's signature, and a few more.

A step's `Path` arguments become options, its sections come from `params.yaml`. Nothing heavy is
imported before a command runs, so `vitdc --help` answers at once; that is why the one-line
descriptions stand here again (a test holds them to the docstrings).
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

import click

from vitdc.errors import InputError, TrainingError, end_on_sigterm, exit_code

if TYPE_CHECKING:
    from vitdc.artifacts import Checkpoint, RoundRow
    from vitdc.config import Params, Section
    from vitdc.tracking import Tracker

COMMANDS = {
    "prepare": "Read images from their source into the prepared format.",
    "pretrain": "Train the ViT on the labels (eq. 1-5); the result is round 0.",
    "embed": "Embed every image of both splits, with its cross-entropy and predicted class.",
    "cluster": "Cluster the training embeddings; test images go to their nearest centroid.",
    "retrain": "Train on with the joint loss (eq. 8), against the frozen clusters of the round"
    " before.",
    "check": "Compute the exact joint loss of a round and decide whether the rounds go on.",
    "evaluate": "Score the best round, draw the pictures and write the report.",
    "refine": "Run the rounds until the joint loss stops falling by epsilon (section 3.2 of the"
    " paper).",
    "run": "Run the whole method in one process, from the images to the report.",
    "summary": "Print the scores and the rounds of a results directory (default: results).",
    "params": "Explain every parameter of params.yaml, or of one SECTION, with its default.",
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and lines, and builds a command when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return OTHERS[cmd_name] if cmd_name in OTHERS else _step_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vitdc")
def cli() -> None:
    """Deep clustering of images with a Vision Transformer.

    The whole method is `dvc repro` (or `make demo`), which calls prepare, pretrain, refine and
    evaluate. `vitdc run` does the same in one process. Parameters come from params.yaml;
    -S section.key=value changes one for a single command.
    """


PARAMS_OPTIONS = (
    click.Option(
        ["--params", "params_file"],
        type=click.Path(path_type=Path),
        default=Path("params.yaml"),
        show_default=True,
        metavar="FILE",
        help="Parameter file.",
    ),
    click.Option(
        ["-S", "--set", "overrides"],
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Change a parameter for this command; may be repeated.",
    ),
)


def main() -> NoReturn:
    """Entry point of `vitdc`."""
    run_group(cli, prog_name="vitdc")


def run_group(group: click.Group, *, prog_name: str) -> NoReturn:
    """Run a command line: 0 done, 1 failed while running, 2 wrong input or configuration."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("vitdc").setLevel(logging.INFO)
    # OpenMP threads that spin while they wait make every other process crawl, and on a machine
    # that is shared they are made to crawl themselves. Read when torch and faiss are loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    end_on_sigterm()
    try:
        group.main(prog_name=prog_name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (InputError, TrainingError) as error:
        click.echo(f"vitdc: {error}", err=True)
        sys.exit(exit_code(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("vitdc: interrupted; nothing half-written is left", err=True)
        sys.exit(130)
    sys.exit(0)


# --- a step's command, made from its signature -------------------------------------------------


def _step_command(name: str) -> click.Command:
    """Build the subcommand of a step, or of `refine`, from its signature and docstring."""
    from vitdc import loop, steps
    from vitdc.config import Section

    function: Callable[..., Any] = loop.refine if name == "refine" else getattr(steps, name)
    hints = {k: v for k, v in get_type_hints(function).items() if k not in ("return", "on_round")}
    sections = [k for k, v in hints.items() if isinstance(v, type) and issubclass(v, Section)]
    description, arguments = parse_docstring(function)
    paths = [key for key in hints if key not in sections and key != "seed"]
    options = [_path_option(function, key, hints[key], arguments[key]) for key in paths]
    if name == "evaluate":
        options = _evaluate_options(options)

    def run(params_file: Path, overrides: tuple[str, ...], **paths: Any) -> None:
        from vitdc.config import Params

        params = Params.load(params_file, overrides)
        execute = {"refine": _refine, "evaluate": _evaluate}.get(name, _execute)
        execute(function, params, paths)

    used = ", ".join(f"`{section}`" for section in sections)
    return click.Command(
        name,
        params=[*options, *PARAMS_OPTIONS],
        callback=run,
        help=description,
        epilog=f"Reads {used} of the parameter file; `vitdc params SECTION` explains them.",
        short_help=COMMANDS[name],
    )


def _path_option(function: Callable[..., Any], key: str, hint: Any, text: str) -> click.Option:
    from vitdc.artifacts import RoundPaths

    def convert(ctx: click.Context, param: click.Parameter, value: Path | None) -> Any:
        return RoundPaths.in_directory(value) if hint is RoundPaths and value else value

    return click.Option(
        [f"--{key}", key],
        type=click.Path(path_type=Path),
        metavar="DIR",
        required=inspect.signature(function).parameters[key].default is inspect.Parameter.empty,
        callback=convert,
        help=text + (" A directory with all three." if hint is RoundPaths else ""),
    )


def _evaluate_options(options: list[click.Option]) -> list[click.Option]:
    """`--rounds DIR` instead of the four artifacts of single rounds, whose number nobody knows."""
    for option in options:
        if option.name in ROUND_OPTIONS:
            option.required = False
    rounds = click.Option(
        ["--rounds"],
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Directory that `refine` wrote; stands for --initial, --previous, --last and --round.",
    )
    dataset, *others = options
    return [dataset, rounds, *others]


def parse_docstring(function: Callable[..., Any]) -> tuple[str, Mapping[str, str]]:
    """A Google docstring's text before `Args:`, and the description of every argument."""
    text = inspect.getdoc(function) or ""
    description, _, rest = text.partition("\nArgs:\n")
    block = re.split(r"\n\n\S", rest)[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", block, flags=re.MULTILINE)
    return description.strip(), {key: " ".join(value.split()) for key, value in found}


# --- what the commands do ----------------------------------------------------------------------

ROUND_OPTIONS = ("initial", "previous", "last", "round")


def _arguments(
    function: Callable[..., Any], params: Params, paths: dict[str, Any]
) -> dict[str, Any]:
    """All that a step takes: its sections and the seed from the parameters, and the paths.

    A path wins over a section of its name: the `clustering` of `check` is an artifact.
    """
    names = inspect.signature(function).parameters
    configured = {n: getattr(params, n) for n in names if n in type(params).model_fields}
    return {**configured, **paths}


def _execute(function: Callable[..., Any], params: Params, paths: dict[str, Any]) -> None:
    """Run a step and say in a line what it made."""
    from vitdc import summary

    click.echo(summary.describe(function(**_arguments(function, params, paths))))


def _refine(function: Callable[..., Any], params: Params, paths: dict[str, Any]) -> None:
    """Run the rounds; print and record each as it ends."""
    from vitdc import summary

    with _tracker(params, paths["dataset"]) as tracker:
        table = summary.RoundTable(click.echo)

        def on_round(rows: list[RoundRow], checkpoint: Checkpoint) -> None:
            table.add(rows[-1])
            tracker.log_rounds(rows)
            tracker.log_history(checkpoint.round, checkpoint.history)

        history = function(**_arguments(function, params, paths), on_round=on_round)
    click.echo(summary.describe_verdict(history))


def _evaluate(function: Callable[..., Any], params: Params, paths: dict[str, Any]) -> None:
    """Evaluate a run and complete its record, whichever stages were skipped before."""
    from vitdc import loop, summary
    from vitdc.artifacts import RoundPaths
    from vitdc.steps import ROUNDS_OF_EVALUATE
    from vitdc.tracking import log_evaluation

    rounds = paths.pop("rounds")
    given = [key for key in ROUND_OPTIONS if paths.get(key) is not None]
    if bool(rounds) == bool(given) or (given and len(given) < len(ROUND_OPTIONS)):
        raise click.UsageError(
            "Give either --rounds or all of --initial, --previous, --last and --round."
        )
    if rounds:
        directories = loop.round_directories(rounds)
        paths |= loop.round_arguments(directories)
        recorded = [RoundPaths.in_directory(directory) for directory in directories]
    else:
        recorded = [paths[key] for key in ROUNDS_OF_EVALUATE]
    with _tracker(params, paths["dataset"]) as tracker:
        evaluation = function(**_arguments(function, params, paths))
        log_evaluation(tracker, evaluation, recorded)
    click.echo(summary.describe(evaluation))


def _tracker(params: Params, dataset: Path) -> AbstractContextManager[Tracker]:
    from vitdc.artifacts import Dataset
    from vitdc.tracking import open_tracker

    images = Dataset.load(dataset)
    return open_tracker(
        params,
        dataset_name=images.name,
        content_hash=images.content_hash,
        origin=images.origin,
    )


# --- commands that are not steps ---------------------------------------------------------------


@click.command("run", params=[*PARAMS_OPTIONS])
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Directory for dataset/, pretrained/, rounds/ and results/.",
)
def run_command(output: Path, params_file: Path, overrides: tuple[str, ...]) -> None:
    """Run the whole method in one process, from the images to the report.

    The same steps as `dvc repro`, without DVC: for a try, a notebook server, a batch job. Started
    again after an interruption, it continues in the training or the round where it was.
    """
    from vitdc import artifacts, loop, steps
    from vitdc.config import Params

    params = Params.load(params_file, overrides)
    dataset, pretrained, rounds = (output / name for name in ("dataset", "pretrained", "rounds"))
    scratch = output / "scratch"
    training = {"dataset": dataset, "scratch": scratch}
    _execute(steps.prepare, params, {"output": dataset})
    _execute(steps.pretrain, params, {**training, "output": pretrained})
    _refine(loop.refine, params, {**training, "checkpoint": pretrained, "output": rounds})
    _evaluate(
        steps.evaluate,
        params,
        {"dataset": dataset, "rounds": rounds, "output": output / "results"},
    )
    artifacts.remove(scratch)


@click.command("summary")
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
def summary_command(results: Path) -> None:
    """Print the scores and the rounds of a results directory (default: results)."""
    from vitdc.artifacts import Evaluation
    from vitdc.summary import summarize

    click.echo(summarize(Evaluation.load(results)))


@click.command("params")
@click.argument("section", required=False)
def params_command(section: str | None) -> None:
    """Explain every parameter of params.yaml, or of one SECTION, with its default."""
    from vitdc.config import Params

    names = Params.section_names()
    if section is not None and section not in names:
        raise InputError(f"params: no section {section!r}; valid are {', '.join(names)}")
    if section is None:
        click.echo(f"seed = {Params().seed}\n    {Params.model_fields['seed'].description}\n")
    for name in [section] if section else names:
        default = getattr(Params(), name)
        click.echo(f"{name}:  # {inspect.getdoc(type(default))}")
        _explain(default)
        click.echo()


def _explain(default: Section, prefix: str = "") -> None:
    """Print the fields of a section with their defaults; those of a section in it by dotted name.

    Of several inner sections with the same fields, the first is explained in full.
    """
    from vitdc.config import Section

    values = default.model_dump(mode="json")
    explained: set[tuple[str, ...]] = set()
    for key, field in type(default).model_fields.items():
        inner = getattr(default, key)
        names = tuple(type(inner).model_fields) if isinstance(inner, Section) else ()
        in_full = bool(names) and names not in explained
        text = " ".join((field.description or "").split())
        click.echo(f"  {prefix}{key}" + ("" if in_full else f" = {json.dumps(values[key])}"))
        click.echo(textwrap.fill(text, 96, initial_indent="      ", subsequent_indent="      "))
        if in_full:
            explained.add(names)
            _explain(inner, f"{prefix}{key}.")


OTHERS = {"run": run_command, "summary": summary_command, "params": params_command}
