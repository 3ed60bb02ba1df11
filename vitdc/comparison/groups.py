"""Runs that differ only in the seed, and whether groups of them differ by more than the seeds do.

Runs of two groups with the same seed start from the same random streams and are scored on the same
images, so their difference is free of most of what a seed brings about; the spread of these paired
differences says how sure their mean is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np

from vitdc.comparison.runs import LABEL_FREE, SCORES, RunResult
from vitdc.config import NOT_IDENTIFYING
from vitdc.errors import InputError

CONFIDENCE = 0.95
EQUAL, UNCLEAR = "equal", "within the noise"
HIGHER, LOWER = "higher, beyond the noise", "lower, beyond the noise"
ONE_PAIR, NO_PAIR = "one pair: noise unknown", "no seed in common"
OTHER_DATA = "on other data"

_WITHOUT_EFFECT = (*NOT_IDENTIFYING, "evaluation.")  # what the report shows is no score


class Summary(NamedTuple):
    """Mean and spread of one value over the runs of a group; std is None for a single run."""

    mean: float
    std: float | None
    num: int


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: What sets it apart from the other groups.
        settings: The same as parameter -> text, None where a run has not recorded it.
        data: Hash of the data set; empty if unknown or if groups reach across data sets.
        runs: One per seed, in the order given.
    """

    label: str
    settings: Mapping[str, str | None]
    data: str
    runs: Sequence[RunResult]

    def summary(self, name: str) -> Summary | None:
        """Mean and sample standard deviation of a value; None if no run has it."""
        values = [run.values[name] for run in self.runs if name in run.values]
        if not values:
            return None
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Summary(float(np.mean(values)), std, len(values))

    def by_seed(self, name: str) -> dict[str | None, float]:
        return {run.seed: run.values[name] for run in self.runs if name in run.values}

    def mean_curve(self, name: str) -> dict[int, float]:
        """The mean at every round that all runs of the group have reached."""
        curves = [run.curves[name] for run in self.runs if run.curves.get(name)]
        if not curves:
            return {}
        common = sorted(set.intersection(*(set(curve) for curve in curves)))
        return {number: float(np.mean([curve[number] for curve in curves])) for number in common}


@dataclass(frozen=True)
class Difference:
    """A group minus the baseline in one score, paired by seed.

    Attributes:
        group: The label of the group.
        score: The name of the score.
        by_seed: Seed -> difference, over the seeds that both have.
        same_data: Whether both groups are known to be on the same data.
    """

    group: str
    score: str
    by_seed: Mapping[str | None, float]
    same_data: bool = True

    @property
    def num_pairs(self) -> int:
        return len(self.by_seed)

    @property
    def num_higher(self) -> int:
        return sum(value > 0 for value in self.by_seed.values())

    @cached_property
    def mean(self) -> float | None:
        return float(np.mean(list(self.by_seed.values()))) if self.by_seed else None

    @cached_property
    def standard_error(self) -> float | None:
        """Of the mean; None for fewer than two pairs."""
        if self.num_pairs < 2:
            return None
        return float(np.std(list(self.by_seed.values()), ddof=1) / np.sqrt(self.num_pairs))

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean by Student's t; None for fewer than two pairs.

        It assumes that the differences scatter roughly normally.
        """
        if self.standard_error is None or self.mean is None:
            return None
        from scipy import stats

        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, df=self.num_pairs - 1)
        reach = float(quantile) * self.standard_error
        return self.mean - reach, self.mean + reach

    @property
    def verdict(self) -> str:
        """What the numbers allow to say, in words."""
        if not self.same_data:
            return OTHER_DATA
        if self.interval is None:
            return ONE_PAIR if self.num_pairs else NO_PAIR
        if not any(self.by_seed.values()):
            return EQUAL
        low, high = self.interval
        return HIGHER if low > 0 else LOWER if high < 0 else UNCLEAR


@dataclass(frozen=True)
class Comparison:
    """Everything there is to say about some runs.

    Attributes:
        runs: In the order given.
        varying: Parameters that differ between the runs, the seed last.
        common: Parameters that are equal in all runs.
        groups: The baseline first, the others in the order of their first runs.
        differences: Of every other group and every score.
        warnings: What the reader must know before believing a number.
    """

    runs: Sequence[RunResult]
    varying: Sequence[str]
    common: Mapping[str, str]
    groups: Sequence[Group]
    differences: Sequence[Difference]
    warnings: Sequence[str]

    @property
    def baseline(self) -> Group:
        return self.groups[0]

    @property
    def loss_compares(self) -> bool:
        """Whether l means the same in all runs; it contains gamma."""
        return "joint.gamma" not in self.varying

    @property
    def data(self) -> str | None:
        """The data set that all runs have in common, None if they differ or nothing is known."""
        (first, *others) = {run.data for run in self.runs}
        return None if others else first or None

    @property
    def measures(self) -> dict[str, str]:
        """What groups are compared by: value -> heading."""
        return measures(self.runs)

    @property
    def short_names(self) -> dict[str, str]:
        """Parameter -> its last part, where that is unique."""
        return short_names(self.varying)

    def group_of(self, run: RunResult) -> Group | None:
        """None for a run that repeats another one."""
        return next((group for group in self.groups if run in group.runs), None)


def compare(
    runs: Sequence[RunResult], *, baseline: str | None = None, across_data: bool = False
) -> Comparison:
    """Group runs by their parameters and pair the groups with the baseline.

    Args:
        runs: At least two.
        baseline: `RunResult.id` of a run whose group is the baseline; by default the first run.
        across_data: Pair runs on different data sets, too.

    Raises:
        InputError: There are fewer than two runs.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run to compare; at least two different ones are needed")
    varying, common = split_params(runs)
    groups, repeated = group_runs(runs, varying, across_data=across_data)
    first = baseline or runs[0].id
    groups = sorted(groups, key=lambda group: all(run.id != first for run in group.runs))
    differences = [
        paired_difference(groups[0], group, score)
        for group, score in product(groups[1:], measures(runs))
        if group.summary(score) or groups[0].summary(score)
    ]
    warnings = _warnings(runs, repeated, across_data=across_data)
    return Comparison(runs, varying, common, groups, differences, warnings)


def measures(runs: Sequence[RunResult]) -> dict[str, str]:
    """The scores, or what there is without any label: value -> heading."""
    return LABEL_FREE if _is_unscored(runs) else SCORES


def _is_unscored(runs: Sequence[RunResult]) -> bool:
    """Whether there are results, and none of them was scored by a label."""
    values = {name for run in runs for name in run.values}
    return bool(values) and not any(name in SCORES for name in values)


def split_params(runs: Sequence[RunResult]) -> tuple[list[str], dict[str, str]]:
    """Parameters that differ (the seed last), and those that do not with their value.

    A parameter that some runs have not recorded differs if the others disagree.
    """
    varying, common = [], {}
    for name in dict.fromkeys(name for run in runs for name in run.params):
        if name.startswith(_WITHOUT_EFFECT):
            continue
        values = {run.params[name] for run in runs if name in run.params}
        if len(values) > 1:
            varying.append(name)
        else:
            common[name] = values.pop()
    return sorted(varying, key=lambda name: name == "seed"), common


def group_runs(
    runs: Sequence[RunResult], varying: Iterable[str], *, across_data: bool
) -> tuple[list[Group], list[RunResult]]:
    """Groups in the order of their first runs, and the runs that repeat a seed of their group."""
    names = [name for name in varying if name != "seed"]
    found: dict[tuple[str | None, ...], dict[str | None, RunResult]] = {}
    repeated = []
    for run in runs:
        key = ("" if across_data else run.data, *(run.params.get(name) for name in names))
        seeds = found.setdefault(key, {})
        if run.seed in seeds:
            repeated.append(run)
        else:
            seeds[run.seed] = run
    several = len({data for data, *_ in found}) > 1
    groups = []
    for (data, *values), by_seed in found.items():
        settings = dict(zip(names, values, strict=True))
        label = _label(settings, data=data if several else None)
        groups.append(Group(label, settings, data or "", list(by_seed.values())))
    return groups, repeated


def paired_difference(baseline: Group, group: Group, score: str) -> Difference:
    """`group` minus `baseline`, over the seeds of which both have the score."""
    ours, theirs = group.by_seed(score), baseline.by_seed(score)
    same_data = group.data == baseline.data
    by_seed = {s: ours[s] - theirs[s] for s in ours if s in theirs} if same_data else {}
    return Difference(group.label, score, by_seed, same_data)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Parameter -> its last part, or the whole name where two end alike."""
    names = list(names)
    last = [name.rpartition(".")[2] for name in names]
    return {n: short if last.count(short) == 1 else n for n, short in zip(names, last, strict=True)}


def show_value(value: str | None) -> str:
    """A parameter for people, also one that a run has not recorded."""
    return "-" if value is None else value


def _label(settings: Mapping[str, str | None], *, data: str | None) -> str:
    short = short_names(settings)
    parts = [f"{short[name]}={show_value(value)}" for name, value in settings.items()]
    if data is not None:
        parts.append(f"data={data[:8] or 'unknown'}")
    return " ".join(parts) or "all runs"


def _warnings(
    runs: Sequence[RunResult],
    repeated: Sequence[RunResult],
    *,
    across_data: bool,
) -> list[str]:
    found = []
    if _is_unscored(runs):
        found.append(
            "No held-out image has a label, so nothing here says which clusters are better: the"
            " silhouette is measured in each run's own embedding, and l against its own clusters."
            " Compare the pictures in the reports, or label some images: labels that are not"
            " trained on (data.labels=none) still score."
        )
    data = {run.data for run in runs}
    if data == {""}:
        found.append("No run says on which data it was scored: nothing shows that they compare.")
    elif len(data) > 1 and not across_data:
        found.append(
            "The runs are not on the same data, so their scores do not compare; runs on different"
            " data are not paired (--across-data pairs them, if you know that the held-out images"
            " are the same)."
        )
    elif len(data) > 1:
        found.append(
            "The runs are not on the same data and are paired all the same, as asked for with"
            " --across-data: differences may be those of the images."
        )
    if unfinished := [run.label for run in runs if not run.values]:
        found.append(f"Without a result (yet), so in the curves only: {', '.join(unfinished)}.")
    if repeated:
        names = ", ".join(run.label for run in repeated)
        found.append(
            f"Same parameters, data and seed as a run before, so not counted again: {names}."
        )
    return found
