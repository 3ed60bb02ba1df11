"""From a results directory to all that was made on the way to it, checked by digest."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from vitdc import artifacts, loop
from vitdc.artifacts import Clustering, Dataset, Embeddings, Evaluation, RoundPaths
from vitdc.errors import InputError


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        evaluation: The results.
        dataset: The images they are about.
        embeddings: Of the best round.
        first_embeddings: Of round 0, which was trained against no clusters.
        clusterings: Of every round, round 0 first.
        best_round: The round that is the result.
        dataset_digest: Names the images, for caches.
        embeddings_digest: Names the embeddings, likewise.
        clustering_digest: Names the clusters that are the result, as the annotations do.
    """

    evaluation: Evaluation
    dataset: Dataset
    embeddings: Embeddings
    first_embeddings: Embeddings
    clusterings: list[Clustering]
    best_round: int
    dataset_digest: str
    embeddings_digest: str
    clustering_digest: str

    @property
    def clustering(self) -> Clustering:
        """The clusters that are the result."""
        return self.clusterings[self.best_round]

    @property
    def results(self) -> Path:
        return self.evaluation.path

    def check_unchanged(self) -> None:
        """What lies in the results directory is still what was loaded from it.

        Raises:
            InputError: It was made anew, or is gone.
        """
        if artifacts.digest(self.results / "model" / "clustering") != self.clustering_digest:
            raise InputError(
                f"{self.results}: these results were made anew since; start vitdc explore again"
            )


def find_run(results: Path, *, dataset: Path | None, rounds: Path | None) -> FinishedRun:
    """Load a run from its results directory.

    Args:
        results: What `evaluate` wrote.
        dataset: Directory of the Dataset; None to look where `dvc repro` and `vitdc run` put it.
        rounds: Directory that `refine` wrote; likewise.

    Raises:
        InputError: Something is missing or damaged, or does not belong to these results.
    """
    evaluation = Evaluation.load(results)
    inputs = set(artifacts.made_by(results)["inputs"])
    dataset = dataset or _beside(results, "dataset")
    if artifacts.digest(dataset) not in inputs:
        raise InputError(_foreign(dataset, results, "--dataset"))
    rounds = rounds or _beside(results, "rounds")
    paths = [RoundPaths.in_directory(directory) for directory in loop.round_directories(rounds)]
    if not all(artifacts.digest(path) in inputs for path in (*paths[0], *paths[-1])):
        raise InputError(_foreign(rounds, results, "--rounds"))
    _check_chain(paths)
    clustering = results / "model" / "clustering"
    best = Clustering.load(clustering).round
    return FinishedRun(
        evaluation=evaluation,
        dataset=Dataset.load(dataset),
        embeddings=Embeddings.load(paths[best].embeddings),
        first_embeddings=Embeddings.load(paths[0].embeddings),
        clusterings=[Clustering.load(path.clustering) for path in paths],
        best_round=best,
        dataset_digest=artifacts.digest(dataset),
        embeddings_digest=artifacts.digest(paths[best].embeddings),
        clustering_digest=artifacts.digest(clustering),
    )


def _beside(results: Path, name: str) -> Path:
    """Where the artifact of that name lies for results in RUN/results (or results/, of DVC)."""
    parent = results.absolute().parent
    candidates = (parent / name, parent / "outputs" / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise InputError(
        f"{results}: its {name} is neither {candidates[0]} nor {candidates[1]}; say where it is"
        f" with --{name} DIR"
    )


def _foreign(path: Path, results: Path, option: str) -> str:
    return (
        f"{path}: is not what {results} was made from (other digests); name the right directory"
        f" with {option} DIR, or evaluate again"
    )


def _check_chain(paths: list[RoundPaths]) -> None:
    """Every round's clusters were made from its embeddings and the clusters of the round before."""
    for before, here in pairwise(paths):
        made_from = artifacts.made_by(here.clustering)["inputs"]
        needed = (artifacts.digest(here.embeddings), artifacts.digest(before.clustering))
        if not set(needed) <= set(made_from):
            raise InputError(
                f"{here.clustering}: does not follow from the round before it; mixed up"
                " directories? Run `vitdc refine` again"
            )
