"""The rounds in one process: retrain, embed, check, cluster, until the check says stop.

The work directory is the final layout of the rounds, `NN/{checkpoint,embeddings,clustering,round}`.
With a scratch directory it lives there, named by a hash of the inputs, and every finished artifact
in it is taken as done; so an interrupted run continues where it was.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitdc import artifacts, steps
from vitdc.artifacts import (
    CONTINUE,
    Checkpoint,
    Clustering,
    Embeddings,
    Round,
    RoundPaths,
    RoundRow,
)
from vitdc.config import ClusteringConfig, ComputeConfig, ConvergenceConfig, JointConfig
from vitdc.errors import InputError
from vitdc.scratch import claimed
from vitdc.watching import NOBODY, Watcher

logger = logging.getLogger(__name__)

OnRound = Callable[[list[RoundRow], Checkpoint], None]


def refine(
    *,
    dataset: Path,
    checkpoint: Path,
    embeddings: Path | None = None,
    clustering: ClusteringConfig,
    joint: JointConfig,
    convergence: ConvergenceConfig,
    compute: ComputeConfig,
    seed: int,
    output: Path,
    scratch: Path | None = None,
    on_round: OnRound | None = None,
    watcher: Watcher = NOBODY,
) -> Round:
    """Run the rounds until the joint loss stops falling by epsilon (section 3.2 of the paper).

    Args:
        dataset: Directory of the Dataset.
        checkpoint: Directory of the Checkpoint of round 0.
        embeddings: Directory of its Embeddings, where `embed` has made them already.
        clustering: The k-means settings.
        joint: gamma, and how long and how to train in a round.
        convergence: epsilon and the most rounds.
        compute: Device, threads and precision.
        seed: Seed of the trainings and of the clustering.
        output: Directory of the rounds, one sub-directory per round.
        scratch: Directory for unfinished work; an interrupted run continues from it.
        on_round: Called after every round, round 0 included, with the rows so far and the
            checkpoint that ended it.
        watcher: Hears of batches, epochs, clusterings and how long steps take.
    """
    first = Checkpoint.load(checkpoint)
    if first.round != 0:
        raise InputError(
            f"{checkpoint}: is of round {first.round}; the rounds start from what `pretrain` writes"
        )
    if embeddings:
        _check_embeddings(embeddings, dataset, checkpoint)
    made_by = {
        "step": "refine",
        "inputs": [artifacts.digest(dataset), artifacts.digest(checkpoint)],
        "sections": [s.model_dump() for s in (clustering, joint, convergence, compute)],
        "seed": seed,
    }
    with (
        claimed(scratch and scratch / steps.scratch_key(made_by)) as resumable,
        _workplace(output, resumable) as work,
    ):

        def once(step: Callable[..., object], number: int, *, output: Path, **inputs: Any) -> None:
            """Run a step unless its artifact is there: artifacts appear whole or not at all."""
            if not output.exists():
                with watcher.timing(step.__name__, number):
                    step(output=output, **inputs)

        features: Path | None = None

        def embed_and_cluster(number: int, here: RoundPaths, previous: Path | None) -> None:
            once(
                steps.embed,
                number,
                dataset=dataset,
                checkpoint=here.checkpoint,
                features=features,
                compute=compute,
                output=here.embeddings,
            )
            once(
                steps.cluster,
                number,
                dataset=dataset,
                embeddings=here.embeddings,
                previous=previous,
                clustering=clustering,
                compute=compute,
                seed=seed,
                output=here.clustering,
            )

        here = RoundPaths.in_directory(work / "00")
        if not here.checkpoint.exists():
            artifacts.copy(checkpoint, here.checkpoint, linked=True)
        if embeddings and not here.embeddings.exists():
            artifacts.copy(embeddings, here.embeddings, linked=True)
        embed_and_cluster(0, here, None)
        features = here.embeddings if first.is_frozen else None
        history = Round(rows=[RoundRow(round=0, verdict=CONTINUE)])
        _report(history.rows, here, on_round, watcher)
        while history.verdict == CONTINUE:
            number = history.current.round + 1
            before, here = here, RoundPaths.in_directory(work / f"{number:02d}")
            once(
                steps.retrain,
                number,
                dataset=dataset,
                checkpoint=before.checkpoint,
                clustering=before.clustering,
                features=features,
                joint=joint,
                compute=compute,
                seed=seed,
                output=here.checkpoint,
                scratch=work / "training" if scratch else None,
                watcher=watcher,
            )
            embed_and_cluster(number, here, before.clustering)
            once(
                steps.check,
                number,
                embeddings=here.embeddings,
                clustering=before.clustering,
                previous=round_path(before) if number > 1 else None,
                joint=joint,
                convergence=convergence,
                output=round_path(here),
            )
            history = Round.load(round_path(here))
            _report(history.rows, here, on_round, watcher)
    return history


def _check_embeddings(embeddings: Path, dataset: Path, checkpoint: Path) -> None:
    Embeddings.load(embeddings)
    if artifacts.made_by(embeddings)["inputs"] != [*map(artifacts.digest, (dataset, checkpoint))]:
        raise InputError(f"{embeddings}: was not made from {dataset} and {checkpoint}")


def round_path(here: RoundPaths) -> Path:
    """Where `refine` puts the Round beside a round's other artifacts."""
    return here.checkpoint.with_name("round")


def round_directories(rounds: Path) -> list[Path]:
    """The directories that `refine` wrote, round 0 first.

    Raises:
        InputError: There are none.
    """
    named = (path for path in Path(rounds).glob("[0-9]*") if path.name.isdigit())
    found = sorted(named, key=lambda path: int(path.name))
    if len(found) < 2:
        raise InputError(f"{rounds}: no finished rounds here; run `vitdc refine` first")
    return found


def round_arguments(directories: list[Path]) -> dict[str, Any]:
    """The arguments of `steps.evaluate` that name rounds, from the directories of all rounds."""
    paths = [RoundPaths.in_directory(directory) for directory in directories]
    return {
        "initial": paths[0],
        "previous": paths[-2],
        "last": paths[-1],
        "round": round_path(paths[-1]),
    }


def _report(
    rows: list[RoundRow], here: RoundPaths, on_round: OnRound | None, watcher: Watcher
) -> None:
    scores = Clustering.load(here.clustering).scores
    watcher.on_clustered(rows[-1].round, scores)
    if on_round is not None:
        on_round([*rows[:-1], rows[-1].with_scores(scores)], Checkpoint.load(here.checkpoint))


@contextmanager
def _workplace(output: Path, resumable: Path | None) -> Iterator[Path]:
    """Where the rounds grow: a directory that survives an interruption, or a temporary one."""
    with artifacts.replacing(output) as partial:
        if resumable is None:
            yield partial
            return
        if resumable.exists():
            logger.info("refine: continuing from %s", resumable)
        resumable.mkdir(parents=True, exist_ok=True)
        yield resumable
        # linked, not moved: what is interrupted here would take the finished rounds along
        shutil.copytree(
            resumable,
            partial,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("training"),
            copy_function=artifacts.link,
        )
    artifacts.remove(resumable)
