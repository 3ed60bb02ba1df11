"""What a Kubeflow component costs beyond its step: a process, imports, KFP's executor, MLflow.

    python benchmarks/component_overhead.py --output outputs/overhead

Runs the digits through KFP's process runner, without its cache, and the bare steps in this process,
where everything is imported already (their second pass counts). The difference is the overhead. The
training is short, because its length does not matter here.
"""

import argparse
import logging
import re
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

from pipelines import local
from vitdc import loop, steps
from vitdc.config import Params

SHORT = ("pretraining.epochs=2", "joint.epochs=1", "convergence.max_rounds=2")


def component_seconds(params: Params, work: Path) -> dict[str, list[float]]:
    """Seconds of every task, by component."""
    finished = local.run_pipeline(params, output=work / "results", root=work / "kfp")
    found: dict[str, list[float]] = defaultdict(list)
    for name, seconds in finished.seconds.items():
        found[re.sub(r" \(round \d+\)", "", name)].append(seconds)
    return found


def step_seconds(params: Params, work: Path) -> dict[str, list[float]]:
    """Seconds of every call of a step, by step."""
    found: dict[str, list[float]] = defaultdict(list)

    def timed(step: Any) -> Any:
        def call(**arguments: Any) -> Any:
            start = time.perf_counter()
            made = step(**arguments)
            found[step.__name__].append(time.perf_counter() - start)
            return made

        return call

    wrapped = {step.__name__: timed(step) for step in steps.STEPS}
    with mock.patch.multiple(steps, **wrapped):
        run_steps(params, work)
    return found


def run_steps(params: Params, work: Path) -> None:
    """The whole method in this process."""
    dataset, pretrained, rounds = (work / name for name in ("dataset", "pretrained", "rounds"))
    shared = {"compute": params.compute, "seed": params.seed, "dataset": dataset}
    steps.prepare(data=params.data, output=dataset)
    steps.pretrain(**shared, model=params.model, pretraining=params.pretraining, output=pretrained)
    loop.refine(
        **shared,
        checkpoint=pretrained,
        clustering=params.clustering,
        joint=params.joint,
        convergence=params.convergence,
        output=rounds,
    )
    found = loop.round_arguments(loop.round_directories(rounds))
    steps.evaluate(**shared, **found, evaluation=params.evaluation, output=work / "evaluation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--output", type=Path, default=Path("outputs/overhead"))
    parser.add_argument("-S", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    logging.getLogger("vitdc").setLevel(logging.WARNING)
    overrides = [*SHORT, "kubernetes.caching=false", *arguments.overrides]
    params = Params.load(arguments.params, overrides)
    tasks = component_seconds(params, arguments.output)
    run_steps(params, arguments.output / "steps")  # imports everything, warms everything up
    bare = step_seconds(params, arguments.output / "steps")
    print(f"\n{'component':>16} {'task s':>8} {'step s':>8} {'overhead s':>11}")
    for name, seconds in tasks.items():
        step = mean(bare[name]) if name in bare else 0.0
        print(f"{name:>16} {mean(seconds):8.2f} {step:8.2f} {mean(seconds) - step:11.2f}")


if __name__ == "__main__":
    main()
