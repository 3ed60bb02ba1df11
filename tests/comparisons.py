"""Results of imaginary runs, for the tests of comparisons and their page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from vitdc.comparison import RunResult

DATA = "0123456789abcdef"


def toy_result(
    seed: int, nmi: float = 0.8, *, data: str = DATA, rounds: int = 3, **params: Any
) -> RunResult:
    """A run whose scores follow from `nmi`; `params` by their last part, e.g. gamma=0.1."""
    names = {"gamma": "joint.gamma", "k": "clustering.num_clusters", "source": "data.source"}
    settings = {names.get(key, key): value for key, value in params.items()}
    id = "-".join(["run", *(f"{k}={v}" for k, v in params.items()), f"seed={seed}", data[:4]])
    numbers = range(rounds + 1)
    return RunResult(
        id=id,
        label=id,
        name=id,
        source="directory",
        params={"joint.epochs": "2", **settings, "seed": str(seed)},
        values={
            "nmi_test": nmi,
            "ari_test": nmi - 0.05,
            "acc_test": nmi + 0.02,
            "nmi_train": nmi + 0.01,
            "loss": 2 - nmi,
            "rounds": rounds,
        },
        curves={
            "nmi_test": {n: nmi - 0.1 / (n + 1) for n in numbers},
            "nmi_train": {n: nmi + 0.01 - 0.1 / (n + 1) for n in numbers},
            "loss": {n: 2 - nmi + 0.5 / n for n in numbers if n},
        },
        state="converged",
        best_round=rounds,
        data=data,
    )


def toy_results(
    gammas: Iterable[str] = ("0.0", "0.1"), *, num_seeds: int = 3, gain: float = 0.02
) -> list[RunResult]:
    """Every gamma with every seed; each gamma is better than the one before by about `gain`."""
    random = np.random.default_rng(0)
    return [
        toy_result(seed, 0.8 + gain * step + float(random.normal(0, 0.01)), gamma=gamma)
        for step, gamma in enumerate(gammas)
        for seed in range(num_seeds)
    ]
