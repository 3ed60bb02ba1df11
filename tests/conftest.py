"""Fixtures that several test files share; the toys themselves are in toys.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import toys

from vitdc import loop, steps


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a Dataset of toy images; only to be read."""
    return toys.write_toy_dataset(tmp_path_factory.mktemp("toy") / "dataset")


@pytest.fixture(scope="session")
def toy_run(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> toys.ToyRun:
    """Two rounds and their evaluation; only to be read."""
    directory = tmp_path_factory.mktemp("run")
    run = toys.ToyRun(toy_dataset, directory / "rounds", directory / "results")
    shared = {"dataset": toy_dataset, "compute": toys.COMPUTE, "seed": 0}
    steps.pretrain(
        **shared,
        model=toys.MODEL,
        pretraining=toys.PRETRAINING,
        output=directory / "pretrained",
    )
    loop.refine(
        **shared,
        checkpoint=directory / "pretrained",
        clustering=toys.CLUSTERING,
        joint=toys.JOINT,
        convergence=toys.CONVERGENCE,
        output=run.rounds,
    )
    steps.evaluate(
        **shared,
        **loop.round_arguments(loop.round_directories(run.rounds)),
        evaluation=toys.EVALUATION,
        output=run.results,
    )
    return run
