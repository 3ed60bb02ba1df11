"""A subcommand per step, made from the step's signature and docstring.

A step's `Path` arguments become options, its sections come from `params.yaml`.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import click

from vitdc.cli.options import PARAMS_OPTIONS

if TYPE_CHECKING:
    from vitdc.artifacts import Checkpoint, Dataset, RoundRow
    from vitdc.config import Params
    from vitdc.data.sources import Source
    from vitdc.tracking import Tracker

ROUND_OPTIONS = ("initial", "previous", "last", "round")
NOT_OPTIONS = ("return", "on_listed", "on_round", "watcher")


def step_command(name: str) -> click.Command:
    """Build the subcommand of a step, or of `refine`, from its signature and docstring."""
    from vitdc import loop, steps
    from vitdc.config import Section

    function: Callable[..., Any] = loop.refine if name == "refine" else getattr(steps, name)
    hints = {k: v for k, v in get_type_hints(function).items() if k not in NOT_OPTIONS}
    sections = [k for k, v in hints.items() if isinstance(v, type) and issubclass(v, Section)]
    description, arguments = parse_docstring(function)
    paths = [key for key in hints if key not in sections and key != "seed"]
    options = [_path_option(function, key, hints[key], arguments[key]) for key in paths]
    if name == "evaluate":
        options = _evaluate_options(options)

    def run(params_file: Path, overrides: tuple[str, ...], **paths: Any) -> None:
        from vitdc.artifacts import check_replaceable
        from vitdc.config import Params

        params = Params.load(params_file, overrides)
        check_replaceable(paths["output"])
        special = {
            "prepare": prepare,
            "pretrain": pretrain,
            "refine": refine,
            "evaluate": evaluate,
        }
        perform = special.get(name, execute)
        perform(function, params, paths)

    used = ", ".join(f"`{section}`" for section in sections)
    return click.Command(
        name,
        params=[*options, *PARAMS_OPTIONS],
        callback=run,
        help=description,
        epilog=f"Reads {used} of the parameter file; `vitdc params SECTION` explains them.",
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


def _arguments(
    function: Callable[..., Any], params: Params, paths: dict[str, Any]
) -> dict[str, Any]:
    """All that a step takes: its sections and the seed from the parameters, and the paths.

    A path wins over a section of its name: the `clustering` of `check` is an artifact.
    """
    names = inspect.signature(function).parameters
    configured = {n: getattr(params, n) for n in names if n in type(params).model_fields}
    return {**configured, **paths}


def execute(function: Callable[..., Any], params: Params, paths: dict[str, Any]) -> None:
    """Run a step and say in a line what it made."""
    from vitdc import summary

    click.echo(summary.describe(function(**_arguments(function, params, paths))))


def pretrain(
    function: Callable[..., Any],
    params: Params,
    paths: dict[str, Any],
    *,
    preparation: float | None = None,
) -> None:
    """Run the initial training and record it, and the seconds of `prepare`, while it goes on.

    What is recorded is named by the data, so nothing can be recorded before the data is there.
    """
    from vitdc import summary
    from vitdc.estimate import Forecast

    with _recording(params, paths["dataset"]) as (tracker, images):
        params.clustering.check_fit(
            num_images=len(images.train), num_classes=images.num_own_clusters
        )
        if preparation is not None:
            tracker.on_step("prepare", 0, preparation)
        with tracker.timing("pretrain"):
            watcher = Forecast(tracker, params, images)
            made = function(**_arguments(function, params, paths), watcher=watcher)
        tracker.log_history(made.round, made.history)
    click.echo(summary.describe(made))


def prepare(function: Callable[..., Any], params: Params, paths: dict[str, Any]) -> None:
    """Prepare the images, and warn if DVC will not notice that they change."""
    from vitdc.data.watching import unwatched

    def on_listed(source: Source) -> None:
        if "DVC_STAGE" in os.environ:  # the other stages follow
            check_source(params, source, output=paths["output"], with_model=True)

    execute(function, params, {**paths, "on_listed": on_listed})
    if warning := unwatched(params.data):
        click.echo(f"vitdc: {warning}", err=True)


def check_source(params: Params, source: Source, *, output: Path, with_model: bool) -> None:
    """Refuse what would fail after images have been decoded.

    Args:
        params: Of the run.
        source: Listed, not decoded.
        output: Directory for what is made.
        with_model: Whether the model is built from `params`, too.
    """
    from vitdc.estimate import check_room

    known = source.train_labels
    if known is not None:
        params.clustering.check_fit(num_images=len(known), num_classes=0)
    if with_model:
        from vitdc.model import check_model

        model = check_model(params.model, image_shape=source.image_shape)
        if known is not None:
            weights = {name: each.nbytes for name, each in model.state_dict().items()}
            frozen = sum(weights[name] for name in model.backbone_names() if model.is_frozen)
            check_room(
                output,
                source.image_shape,
                num_images=len(known),
                embedding_dim=model.embedding_dim,
                model_bytes=sum(weights.values()) - frozen,
                frozen_bytes=frozen,
                keep_decoded=params.data.keep_decoded,
            )


def refine(function: Callable[..., Any], params: Params, paths: dict[str, Any]) -> None:
    """Run the rounds; print and record each as it ends."""
    from vitdc import summary
    from vitdc.estimate import Forecast

    with _recording(params, paths["dataset"]) as (tracker, images):
        table = summary.RoundTable(click.echo)

        def on_round(rows: list[RoundRow], checkpoint: Checkpoint) -> None:
            table.add(rows[-1])
            tracker.log_rounds(rows)
            tracker.log_history(checkpoint.round, checkpoint.history)

        history = function(
            **_arguments(function, params, paths),
            on_round=on_round,
            watcher=Forecast(tracker, params, images),
        )
    click.echo(summary.describe_verdict(history))


def evaluate(function: Callable[..., Any], params: Params, paths: dict[str, Any]) -> None:
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
    with _recording(params, paths["dataset"]) as (tracker, dataset):
        with tracker.timing("evaluate"):
            evaluation = function(**_arguments(function, params, paths))
        log_evaluation(tracker, evaluation, recorded, dataset=dataset)
    click.echo(summary.describe(evaluation))


@contextmanager
def _recording(params: Params, dataset: Path) -> Iterator[tuple[Tracker, Dataset]]:
    """The tracker of the run that the parameters and the data stand for."""
    from vitdc.artifacts import Dataset
    from vitdc.tracking import open_tracker

    images = Dataset.load(dataset)
    with open_tracker(
        params,
        dataset_name=images.name,
        content_hash=images.content_hash,
        origin=images.origin,
    ) as tracker:
        tracker.log_dataset(images)
        yield tracker, images
