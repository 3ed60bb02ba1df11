"""`vitdc run`: the whole method in one process."""

from __future__ import annotations

import time
from pathlib import Path

import click

from vitdc.cli.options import PARAMS_OPTIONS
from vitdc.cli.steps import evaluate, execute, pretrain, refine


@click.command("run", params=[*PARAMS_OPTIONS])
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Directory for dataset/, pretrained/, rounds/ and results/.",
)
def command(output: Path, params_file: Path, overrides: tuple[str, ...]) -> None:
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
    started = time.perf_counter()
    execute(steps.prepare, params, {"output": dataset})
    preparation = time.perf_counter() - started
    pretrain(steps.pretrain, params, {**training, "output": pretrained}, preparation=preparation)
    refine(loop.refine, params, {**training, "checkpoint": pretrained, "output": rounds})
    evaluate(
        steps.evaluate,
        params,
        {"dataset": dataset, "rounds": rounds, "output": output / "results"},
    )
    artifacts.remove(scratch)
