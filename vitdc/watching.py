"""What the work tells while it goes on, to whoever watches; the results do not depend on it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vitdc.artifacts import ClusteringScores


class Watcher:
    """Hears of everything and does nothing; others override what they want to hear.

    The round of a training is the one that it leads to; 0 is the initial training.
    """

    def on_batch(
        self, round: int, step: int, values: Mapping[str, float], *, num_steps: int
    ) -> None:
        """Some batches were trained on; called every few of them, where the loss is read anyway.

        Args:
            round: The round.
            step: Optimizer steps of this training so far.
            values: "loss", "cross_entropy", "clustering_loss", "learning_rate" of the last batch
                and "images_per_second" of this training so far.
            num_steps: Of the whole training.
        """

    def on_epoch(self, round: int, row: Mapping[str, float], *, num_epochs: int) -> None:
        """An epoch ended.

        Args:
            round: The round.
            row: As in `Checkpoint.history`, and "images_per_second" of the epoch.
            num_epochs: Of the whole training.
        """

    def on_clustered(self, round: int, scores: ClusteringScores) -> None:
        """The clustering that ends a round is there."""

    def on_step(self, name: str, round: int, seconds: float) -> None:
        """A step of the method ended."""

    @contextmanager
    def timing(self, name: str, round: int = 0) -> Iterator[None]:
        """Tell how long a step took, if it ends well."""
        start = time.perf_counter()
        yield
        self.on_step(name, round, time.perf_counter() - start)


NOBODY = Watcher()
