"""`vitdc run`: the whole method in one process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitdc.cli.options import PARAMS_OPTIONS
from vitdc.cli.steps import check_source, evaluate, execute, pretrain, refine

if TYPE_CHECKING:
    from vitdc.artifacts import Checkpoint
    from vitdc.config import Params
    from vitdc.data.sources import Source

logger = logging.getLogger(__name__)


@click.command("run", params=[*PARAMS_OPTIONS])
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Directory for dataset/, pretrained/, rounds/ and results/.",
)
@click.option(
    "--reuse",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Directory of an earlier run: its initial training and its embeddings of round 0 are"
    " taken, e.g. for another number of clusters. Images, model and seed have to be the same.",
)
def command(
    output: Path, reuse: Path | None, params_file: Path, overrides: tuple[str, ...]
) -> None:
    """Run the whole method in one process, from the images to the report.

    The same steps as `dvc repro`, without DVC: for a try, a notebook server, a batch job. Started
    again after an interruption, it continues in the training or the round where it was.
    """
    from vitdc import artifacts, loop, steps
    from vitdc.artifacts import Checkpoint, Embeddings
    from vitdc.config import Params
    from vitdc.scratch import alone

    params = Params.load(params_file, overrides)
    dataset, pretrained, rounds = (output / name for name in ("dataset", "pretrained", "rounds"))
    scratch = output / "scratch"
    training = {"dataset": dataset, "scratch": scratch}
    round_0 = {"checkpoint": pretrained}
    if reuse:
        round_0 = {
            "checkpoint": reuse / "pretrained",
            "embeddings": reuse / "rounds" / "00" / "embeddings",
        }
        Checkpoint.load(round_0["checkpoint"])
        Embeddings.load(round_0["embeddings"])

    def on_listed(source: Source) -> None:
        check_source(params, source, output=output, with_model=reuse is None)

    with alone(output):  # two runs would mix what they write
        started = time.perf_counter()
        execute(steps.prepare, params, {"output": dataset, "on_listed": on_listed})
        preparation = time.perf_counter() - started
        if reuse:
            steps.check_reusable(round_0["checkpoint"], dataset=dataset, params=params)
        else:
            made = {**training, "output": pretrained}
            pretrain(_once(steps.pretrain, params), params, made, preparation=preparation)
        refine(loop.refine, params, {**training, **round_0, "output": rounds})
        evaluate(
            steps.evaluate,
            params,
            {"dataset": dataset, "rounds": rounds, "output": output / "results"},
        )
        artifacts.remove(scratch)


def _once(train: Callable[..., Checkpoint], params: Params) -> Callable[..., Checkpoint]:
    """The initial training, or its result where an interrupted run had come that far."""
    from vitdc import steps
    from vitdc.artifacts import Checkpoint

    @wraps(train)
    def trained(*, dataset: Path, output: Path, **others: Any) -> Checkpoint:
        try:
            steps.check_reusable(output, dataset=dataset, params=params)
            found = Checkpoint.load(output)
        except (OSError, ValueError):  # none there, or another one
            return train(dataset=dataset, output=output, **others)
        logger.info("pretrain: taken from %s, of the same images and parameters", output)
        return found

    return trained
