"""Do the clustering loss and the rounds help, and with which labels?

    python benchmarks/study.py --output outputs/study

For every data set, kind of labels and seed: one initial training, and from it the same rounds with
gamma as configured and with gamma = 0. All arms have the same epochs, batches and random streams,
so their paired difference is what the clustering loss brings. Beside them: k-means on the pixels,
and supervised training on the few labels alone, for as many optimizer steps as all labels take.

Every seed draws other labels; all are scored on the same test images, against the true labels.
`study.csv` gets a row as soon as it is measured, and a row that is there is not measured again.
"""

import argparse
import csv
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from tqdm import tqdm

from vitdc import steps
from vitdc.artifacts import (
    SPLITS,
    Clustering,
    Dataset,
    Embeddings,
    Round,
    RoundPaths,
    SplitScores,
    Supervision,
    copy,
    made_by,
    writing_dataset,
)
from vitdc.clustering import assign, kmeans
from vitdc.config import Params
from vitdc.data.sampling import fraction_per_class
from vitdc.evaluation import score_pixels
from vitdc.loop import round_path
from vitdc.metrics import score_split
from vitdc.report.figures import AMBER, BLUE, GREEN, INK, LINE, MUTED, PNG_DPI, SKY
from vitdc.seeding import derive_seed

ROOT = Path(__file__).parents[1]
# a sixth of the images, in about as many optimizer steps
FASHION = ("data.max_train=10000", "pretraining.epochs=12", "joint.epochs=6")
DATASETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits": ("params.yaml", ()),
    "fashion": ("params/fashion-mnist.yaml", FASHION),
}
REGIMES = {
    "full": "all labels",
    "partial": "5 % of the labels",
    "noisy": "5 %, a fifth of them wrong",
    "none": "no labels",
    "novel": "half of the labels of 5 of 10 classes",
}
FEW, WRONG, SEEN = 0.05, 0.2, 0.5
PIXELS, ALONE, HEAD, PLAIN, INITIAL = (
    "k-means on pixels",
    "supervised alone",
    "supervised alone, its head",
    "k-means without labels",
    "initial",
)
KEY = ("dataset", "regime", "arm", "seed", "round")
SCORES = tuple(f"{score}_{split}" for score in SplitScores._fields[:3] for split in SPLITS)
COLUMNS = (*KEY, *SCORES, "acc_known", "acc_new", "loss", "changed", "verdict", "seconds")


class Table:
    """study.csv, which grows by a row as soon as it is measured."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        rows = self.read()[list(KEY)].itertuples(index=False, name=None)
        self._there = set(rows)

    def read(self) -> pd.DataFrame:
        return pd.read_csv(self._file)

    def measure(self, key: tuple[Any, ...], values: Callable[[], dict[str, Any]]) -> None:
        """Add a row, with the CPU time it took, unless it is there."""
        if key in self._there:
            return
        started = time.process_time()
        row = dict(zip(KEY, key, strict=True)) | values()
        row["seconds"] = round(time.process_time() - started, 1)
        with self._file.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(
                {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
            )
        self._there.add(key)


def choose_labels(images: Dataset, regime: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool: which labels of the training images are trained on; and the labels, some wrong."""
    labels = images.train.labels.copy()
    known = np.zeros(len(labels), bool)
    if regime == "full":
        known[:] = True
    elif regime in ("partial", "noisy", "novel"):
        names = [name for name, split in images.image_names() if split == "train"]
        seen = labels < len(images.class_names) // 2 if regime == "novel" else labels >= 0
        rows = np.flatnonzero(seen)
        fraction = SEEN if regime == "novel" else FEW
        chosen = fraction_per_class(
            [names[row] for row in rows], labels[rows], fraction=fraction, seed=seed
        )
        known[rows[chosen]] = True
    if regime == "noisy":
        generator = np.random.default_rng(derive_seed(seed, "study", "wrong"))
        own = np.flatnonzero(known)
        wrong = generator.choice(own, round(WRONG * len(own)), replace=False)
        classes = len(images.class_names)
        labels[wrong] = (labels[wrong] + generator.integers(1, classes, len(wrong))) % classes
    return known, labels


def write_labels(images: Dataset, regime: str, seed: int, output: Path) -> None:
    """Write the Dataset anew with other labels to train on.

    A wrong label never scores: training images whose label is trained on do not, if some are not.
    """
    known, labels = choose_labels(images, regime, seed)
    origin = made_by(images.path) | {"labels": regime, "labels_seed": seed}
    names = {split: [n for n, s in images.image_names() if s == split] for split in SPLITS}
    with writing_dataset(output, origin, image_shape=images.image_shape) as writer:
        for split, own in (("train", labels), ("test", images.test.labels)):
            pictures = images.split(split).images
            writer.append(split, names=names[split], labels=own, images=pictures)
        writer.describe(
            name=images.name,
            class_names=images.class_names,
            mean=images.mean,
            std=images.std,
            content_hash=images.content_hash,
            num_unreadable=images.num_unreadable,
            known=None if known.all() else known,
        )


class Run(NamedTuple):
    """One data set, kind of labels and seed: what its steps share."""

    dataset: Path
    params: Params
    work: Path

    @property
    def supervision(self) -> Supervision:
        return Dataset.load(self.dataset).supervision

    @property
    def shared(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "compute": self.params.compute,
            "seed": self.params.seed,
        }

    def pretrain(
        self, here: RoundPaths, *, unlabelled: Path | None = None, **pretraining: Any
    ) -> None:
        """The initial training, embedded and clustered.

        One that saw no label (no head came of it) is the same for all kinds of labels; it is kept
        as `unlabelled`, and taken from there.
        """
        config = self.params.pretraining.model_copy(update=pretraining)
        if unlabelled and unlabelled.exists() and self.supervision != "full":
            copy(unlabelled, here.checkpoint)
        else:
            found = steps.pretrain(
                model=self.params.model, pretraining=config, output=here.checkpoint, **self.shared
            )
            if unlabelled and not found.num_outputs:
                copy(here.checkpoint, unlabelled)
        self.embed_and_cluster(here, None)

    def retrain(self, here: RoundPaths, before: RoundPaths, gamma: float) -> Round:
        """One round, checked, embedded and clustered."""
        joint = self.params.joint.model_copy(update={"gamma": gamma})
        steps.retrain(
            checkpoint=before.checkpoint,
            clustering=before.clustering,
            joint=joint,
            output=here.checkpoint,
            **self.shared,
        )
        self.embed_and_cluster(here, before.clustering)
        previous = round_path(before)
        return steps.check(
            embeddings=here.embeddings,
            clustering=before.clustering,
            previous=previous if previous.exists() else None,
            joint=joint,
            convergence=self.params.convergence,
            output=round_path(here),
        )

    def embed_and_cluster(self, here: RoundPaths, previous: Path | None) -> None:
        steps.embed(
            dataset=self.dataset,
            checkpoint=here.checkpoint,
            compute=self.params.compute,
            output=here.embeddings,
        )
        steps.cluster(
            embeddings=here.embeddings,
            previous=previous,
            clustering=self.params.clustering,
            output=here.clustering,
            **self.shared,
        )

    def scores(self, assignment: dict[str, np.ndarray]) -> dict[str, Any]:
        """All scores of clusters (N,) by split."""
        images = Dataset.load(self.dataset)
        labels = {split: images.scoring_labels(split) for split in SPLITS}
        found: dict[str, Any] = {}
        for split in SPLITS:
            scored = score_split(labels[split], assignment[split]).scores()
            found |= {f"{name}_{split}": value for name, value in scored.items()}
        seen = np.unique(images.train.labels[images.known])
        if 0 < len(seen) < len(images.class_names):
            found |= score_classes(labels["train"], assignment["train"], seen)
        return found

    def clusters(self, here: RoundPaths) -> dict[str, Any]:
        """The scores of a Clustering."""
        found = Clustering.load(here.clustering)
        return self.scores({split: found.split(split).assignment for split in SPLITS})

    def plain_kmeans(self, here: RoundPaths) -> dict[str, Any]:
        """The scores of k-means on the same embeddings, which knows no label."""
        found = Embeddings.load(here.embeddings)
        points = np.ascontiguousarray(found.train.embedding)
        seed = derive_seed(self.params.seed, "study", "plain", found.round)
        centroids = kmeans(points, self.params.clustering, seed=seed).centroids
        return self.scores(
            {split: assign(found.split(split).embedding, centroids)[0] for split in SPLITS}
        )

    def pixels(self) -> dict[str, Any]:
        """The scores of k-means on the pixels."""
        images = Dataset.load(self.dataset)
        seed = derive_seed(self.params.seed, "pixels")
        found = score_pixels(images, self.params.clustering, seed=seed)
        return {
            f"{name}_{split}": value
            for split in SPLITS
            for name, value in found[split].scores().items()
        }

    def supervised_alone(self, here: RoundPaths) -> dict[str, Any]:
        """Train on the known labels alone, for as many steps as all labels would take."""
        config, images = self.params.pretraining, Dataset.load(self.dataset)
        times = len(images.known) / images.known.sum()
        self.pretrain(
            here,
            objective="supervised",
            epochs=round(config.epochs * times),
            warmup_epochs=config.warmup_epochs * times,
        )
        return self.clusters(here)


def score_classes(labels: np.ndarray, clusters: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """Accuracy on the classes that some labels are known of, and on the new ones.

    One matching of clusters to classes serves both, as in generalized category discovery
    (https://arxiv.org/abs/2201.02609).
    """
    from scipy.optimize import linear_sum_assignment

    from vitdc.metrics import contingency

    own = labels >= 0
    counts = contingency(labels, clusters, shape=(labels.max() + 1, clusters.max() + 1))
    matched = np.full(len(counts), -1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    matched[rows] = columns
    right = matched[labels] == clusters
    known = np.isin(labels, seen)
    return {
        "acc_known": float(right[own & known].mean()),
        "acc_new": float(right[own & ~known].mean()),
    }


def study_run(
    table: Table, key: tuple[str, str, int], run: Run, gammas: Sequence[float], rounds: int
) -> None:
    """Measure all arms of a run that are not in the table."""
    dataset, regime, seed = key

    def measure(arm: str, number: int, values: Callable[[], dict[str, Any]]) -> None:
        table.measure((dataset, regime, arm, seed, number), values)

    start = RoundPaths.in_directory(run.work / "initial")

    def initial() -> dict[str, Any]:
        run.pretrain(start, unlabelled=run.work.parents[1] / "self-supervised" / str(seed))
        return run.clusters(start)

    measure(PIXELS, 0, run.pixels)
    measure(INITIAL, 0, initial)
    if regime in ("partial", "noisy", "novel"):
        alone = RoundPaths.in_directory(run.work / "alone")
        measure(ALONE, 0, lambda: run.supervised_alone(alone))
        measure(HEAD, 0, lambda: run.scores(predicted(alone)))
        measure(PLAIN, 0, lambda: run.plain_kmeans(start))
    for gamma in gammas:
        before = start
        for number in range(1, rounds + 1):
            here = RoundPaths.in_directory(run.work / f"{gamma:g}" / f"{number:02d}")

            def one_round(
                here: RoundPaths = here, before: RoundPaths = before, gamma: float = gamma
            ) -> dict[str, Any]:
                row = run.retrain(here, before, gamma).current
                changed = Clustering.load(here.clustering).scores.changed
                return run.clusters(here) | {
                    "loss": row.loss,
                    "changed": changed,
                    "verdict": row.verdict,
                }

            measure(f"gamma {gamma:g}", number, one_round)
            before = here


def predicted(here: RoundPaths) -> dict[str, np.ndarray]:
    """The class that the head gives every image, by split."""
    found = Embeddings.load(here.embeddings)
    return {split: found.split(split).predicted for split in SPLITS}


class Interval(NamedTuple):
    """Mean and 95 % confidence interval (Student's t) of values over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: pd.Series) -> "Interval":
        if len(values) < 2:
            return cls(float(values.mean()), float("nan"), float("nan"))
        if values.std() == 0:
            return cls(*[float(values.mean())] * 3)
        low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        return cls(float(values.mean()), float(low), float(high))

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def differences(rows: pd.DataFrame, score: str = "nmi_test") -> dict[str, pd.Series]:
    """Paired differences over the seeds, by what they tell, for one data set and regime."""
    last = {arm: own[own["round"] == own["round"].max()] for arm, own in rows.groupby("arm")}
    at = {str(arm): own.set_index("seed")[score] for arm, own in last.items()}
    arms = gamma_arms(rows)
    main = arms[0]
    pairs = {f"{arm} - gamma 0": (arm, "gamma 0") for arm in arms if arm != "gamma 0"}
    pairs |= {"rounds with gamma 0": ("gamma 0", INITIAL), f"rounds with {main}": (main, INITIAL)}
    pairs |= {f"{main} - {name}": (main, name) for name in (ALONE, HEAD, PIXELS)}
    found = {
        name: (at[one] - at[other]).dropna()
        for name, (one, other) in pairs.items()
        if one in at and other in at
    }
    return {name: values for name, values in found.items() if len(values)}


def gamma_arms(rows: pd.DataFrame) -> list[str]:
    """The arms with rounds, as configured first, gamma = 0 last."""
    arms = [arm for arm in rows["arm"].unique() if arm.startswith("gamma")]
    return sorted(arms, key=lambda arm: arm == "gamma 0")


def verdict_of(found: dict[str, pd.Series]) -> str:
    """One sentence: what the clustering loss and the rounds did to the test NMI."""

    def said(name: str, values: pd.Series) -> str:
        interval = Interval.of(values)
        if len(values) < 2:
            return f"{name}: one seed cannot tell ({interval.mean:+.3f})"
        what = "shows no clear effect"
        if interval.low > 0:
            what = "helps"
        elif interval.high < 0:
            what = "hurts"
        return f"{name} {what} ({interval})"

    loss = next((n for n in found if n.endswith("- gamma 0")), None)
    rounds = next((n for n in reversed(found) if n.startswith("rounds")), None)
    parts = [said("the clustering loss", found[loss])] if loss else []
    parts += [said("retraining in rounds", found[rounds])] if rounds else []
    return "; ".join(parts)


def print_tables(table: pd.DataFrame) -> None:
    """Means of every arm, paired differences, and a sentence per regime, as Markdown."""
    for (dataset, regime), rows in groups(table):
        print(f"\n### {dataset}, {REGIMES[regime]}: {rows['seed'].nunique()} seeds\n")
        print(
            "| arm | round | seeds | test NMI | lowest | ARI | ACC | train NMI |"
            " ACC, known classes | new | CPU s |"
        )
        print("|---" * 11 + "|")
        for (arm, number), own in rows.groupby(["arm", "round"], sort=False):
            mean = own.mean(numeric_only=True)
            nmi = (mean.nmi_test, own.nmi_test.min())
            rest = mean[["ari_test", "acc_test", "nmi_train", "acc_known", "acc_new"]]
            cells = (*nmi, *rest)
            text = " | ".join("-" if np.isnan(cell) else f"{cell:.3f}" for cell in cells)
            print(f"| {arm} | {number} | {len(own)} | {text} | {mean.seconds:.0f} |")
        print("\n| paired difference in test NMI | mean [95 % interval] |\n|---|---|")
        found = differences(rows)
        for name, values in found.items():
            print(f"| {name} | {Interval.of(values)} |")
        print(f"\n{dataset}, {REGIMES[regime]}: {verdict_of(found)}.")


def groups(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """The rows by data set and regime, in their order here, where both arms are there."""
    found = {key: rows for key, rows in table.groupby(["dataset", "regime"]) if gamma_arms(rows)}
    order = [(dataset, regime) for dataset in DATASETS for regime in REGIMES]
    return [(key, found[key]) for key in order if key in found]


COLORS = (BLUE, AMBER, GREEN, SKY)


def draw(table: pd.DataFrame) -> Figure:
    """Per data set and regime: test NMI by round, and the paired differences by seed."""
    panels = groups(table)
    width = max(3.2 * len(panels), 6.0)
    figure = Figure(figsize=(width, 6.4), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharey="row", height_ratios=(3, 2))
    for column, ((dataset, regime), rows) in enumerate(panels):
        draw_rounds(axes[0, column], rows)
        axes[0, column].set_title(f"{dataset}\n{REGIMES[regime]}", fontsize=10)
        draw_differences(axes[1, column], rows)
    axes[0, 0].set_ylabel("test NMI, mean and 95 % interval")
    axes[1, 0].set_ylabel("paired difference")
    handles: dict[str, Artist] = {}
    for axis in axes[0]:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(2 * len(panels), 6),
        fontsize=9,
    )
    return figure


def draw_rounds(axis: Axes, rows: pd.DataFrame) -> None:
    for color, arm in zip((*COLORS, *COLORS), gamma_arms(rows), strict=False):
        own = rows[rows["arm"].isin([arm, INITIAL])].groupby("round")["nmi_test"]
        found = {number: Interval.of(values) for number, values in own}
        means, lows, highs = zip(*found.values(), strict=True)
        axis.plot(list(found), means, color=color, marker="o", markersize=4, label=arm)
        axis.fill_between(list(found), lows, highs, color=color, alpha=0.15, linewidth=0)
    for name, dashes in ((PIXELS, (1, 1.5)), (ALONE, (5, 2)), (HEAD, (5, 1.5, 1, 1.5))):
        own = rows[rows["arm"] == name]["nmi_test"]
        if len(own):
            axis.axhline(own.mean(), color=MUTED, linewidth=1.2, dashes=dashes, label=name)
    axis.set_xlabel("round")
    axis.set_xticks(sorted(rows["round"].unique()))
    axis.grid(axis="y", color=LINE)
    axis.set_axisbelow(True)


def draw_differences(axis: Axes, rows: pd.DataFrame) -> None:
    found = {n: v for n, v in differences(rows).items() if "- gamma 0" in n or "rounds" in n}
    axis.axhline(0, color=MUTED, linewidth=1)
    for place, values in enumerate(found.values()):
        axis.plot([place] * len(values), values, "o", color=MUTED, alpha=0.5, markersize=4)
        mean, low, high = Interval.of(values)
        axis.errorbar(
            place + 0.2, mean, [[mean - low], [high - mean]], fmt="s", color=INK, capsize=3
        )
    names = [name.replace(" - ", "\n- ").replace(" with ", ",\n") for name in found]
    axis.set_xticks(range(len(found)), names, fontsize=8)
    axis.set_xlim(-0.5, len(found) - 0.3)
    axis.grid(axis="y", color=LINE)
    axis.set_axisbelow(True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="directory of study.csv, study.png and all artifacts",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=range(10, 15), help="default: 10 to 14"
    )
    parser.add_argument(
        "--datasets", nargs="+", choices=DATASETS, default=["digits"], help="default: digits"
    )
    parser.add_argument(
        "--regimes", nargs="+", choices=REGIMES, default=list(REGIMES), help="default: all"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of every arm (default: 3)")
    parser.add_argument(
        "--gammas", type=float, nargs="+", help="default: joint.gamma of the parameter file, and 0"
    )
    parser.add_argument(
        "-S",
        dest="overrides",
        action="append",
        default=[],
        help="section.key=value; rows do not say it, so give it an --output of its own",
    )
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    logging.basicConfig(level=logging.WARNING)
    table = Table(options.output / "study.csv")
    runs = [(d, r, s) for d in options.datasets for s in options.seeds for r in options.regimes]
    progress = tqdm(runs, unit="run")
    for dataset, regime, seed in progress:
        progress.set_description(f"{dataset} {regime} {seed}")
        file, own = DATASETS[dataset]
        params = Params.load(ROOT / file, (*own, *options.overrides, f"seed={seed}"))
        base = options.output / dataset / "dataset"
        if not base.exists():
            steps.prepare(data=params.data, output=base)
        work = options.output / dataset / regime / str(seed)
        run = Run(work / "dataset", params, work)
        if not run.dataset.exists():
            write_labels(Dataset.load(base), regime, seed, run.dataset)
        gammas = options.gammas or (params.joint.gamma, 0.0)
        study_run(table, (dataset, regime, seed), run, gammas, options.rounds)
    rows = table.read()
    print_tables(rows)
    figure = options.output / "study.png"
    draw(rows).savefig(figure, dpi=PNG_DPI)
    print(f"\n{figure} and {options.output / 'study.csv'} hold all of it")


if __name__ == "__main__":
    main()
