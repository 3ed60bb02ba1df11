"""The loop in one process: the same as the steps by hand, and it survives any interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toys
from toys import COMPUTE, ToyRun, contents, from_call, interrupt

from vitdc import loop, steps
from vitdc.artifacts import Checkpoint, Clustering, Round, RoundPaths, RoundRow
from vitdc.config import ConvergenceConfig, JointConfig
from vitdc.errors import InputError, TrainingError
from vitdc.objectives import supervised
from vitdc.summary import describe


def refine(run: ToyRun, output: Path, **changes: Any) -> Round:
    """The rounds of `toy_run` again, with changes."""
    arguments: dict[str, Any] = {
        "dataset": run.dataset,
        "checkpoint": run.pretrained,
        "clustering": toys.CLUSTERING,
        "joint": toys.JOINT,
        "convergence": toys.CONVERGENCE,
        "compute": COMPUTE,
        "seed": 0,
    }
    return loop.refine(**{**arguments, **changes}, output=output)


def test_refine_is_the_steps_called_by_hand(toy_run: ToyRun, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"dataset": toy_run.dataset, "compute": COMPUTE}
    checkpoint, clustering, history = toy_run.pretrained, None, None
    for number in range(3):
        here = RoundPaths.in_directory(tmp_path / f"{number:02d}")
        if clustering is not None:
            steps.retrain(
                **shared,
                checkpoint=checkpoint,
                clustering=clustering,
                joint=toys.JOINT,
                seed=0,
                output=here.checkpoint,
            )
            checkpoint = here.checkpoint
        steps.embed(**shared, checkpoint=checkpoint, output=here.embeddings)
        if clustering is not None:
            judged = tmp_path / f"{number:02d}" / "round"
            steps.check(
                embeddings=here.embeddings,
                clustering=clustering,
                previous=history,
                joint=toys.JOINT,
                convergence=toys.CONVERGENCE,
                output=judged,
            )
            history = judged
        steps.cluster(
            **shared,
            embeddings=here.embeddings,
            previous=clustering,
            clustering=toys.CLUSTERING,
            seed=0,
            output=here.clustering,
        )
        clustering = here.clustering
    expected = contents(toy_run.rounds)
    assert contents(tmp_path) == {
        name: data for name, data in expected.items() if not name.startswith("00/checkpoint/")
    }


# --- interruptions -----------------------------------------------------------------------------

STEP_CALLS = [("embed", 1), ("cluster", 1), ("retrain", 1), ("retrain", 2), ("check", 1)]


@pytest.mark.parametrize(("step", "call"), STEP_CALLS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_loop_continues_to_the_same_bytes(
    toy_run: ToyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    call: int,
    when: str,
) -> None:
    original = getattr(steps, step)

    def done_then_interrupted(**arguments: Any) -> None:
        original(**arguments)
        raise KeyboardInterrupt

    last = interrupt if when == "before" else done_then_interrupted
    with monkeypatch.context() as patch:
        patch.setattr(steps, step, from_call(call, use=last, before=original))
        with pytest.raises(KeyboardInterrupt):
            refine(toy_run, tmp_path / "out", scratch=tmp_path / "scratch")
    assert not (tmp_path / "out").exists()
    refine(toy_run, tmp_path / "out", scratch=tmp_path / "scratch")
    assert contents(tmp_path / "out") == contents(toy_run.rounds)
    assert contents(tmp_path / "scratch") == {}


def test_a_loop_killed_inside_an_epoch_continues_to_the_same_bytes(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupting = from_call(5, use=interrupt, before=supervised.augment)
        patch.setattr(supervised, "augment", interrupting)
        with pytest.raises(KeyboardInterrupt):
            refine(toy_run, tmp_path / "out", scratch=tmp_path / "scratch")
    refine(toy_run, tmp_path / "out", scratch=tmp_path / "scratch")
    assert contents(tmp_path / "out") == contents(toy_run.rounds)


def test_an_error_in_on_round_loses_no_round(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(rows: list[RoundRow], checkpoint: Checkpoint) -> None:
        if rows[-1].round == 1:
            raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"):
        refine(toy_run, tmp_path / "out", scratch=tmp_path / "scratch", on_round=full_disk)
    monkeypatch.setattr(steps, "retrain", from_call(2, use=interrupt, before=steps.retrain))
    refine(toy_run, tmp_path / "out", scratch=tmp_path / "scratch")
    assert contents(tmp_path / "out") == contents(toy_run.rounds)


def test_an_interruption_while_the_result_is_put_in_place_loses_no_round(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def rename_unless_final(self: Path, target: Path) -> Path:
        if Path(target) == tmp_path / "out":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_unless_final)
        with pytest.raises(KeyboardInterrupt):
            refine(toy_run, tmp_path / "out", scratch=tmp_path / "scratch")
    monkeypatch.setattr(steps, "retrain", interrupt)
    refine(toy_run, tmp_path / "out", scratch=tmp_path / "scratch")
    assert contents(tmp_path / "out") == contents(toy_run.rounds)


def test_without_scratch_an_interruption_leaves_nothing_and_the_old_rounds_whole(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refine(toy_run, tmp_path / "out")
    monkeypatch.setattr(steps, "check", interrupt)
    with pytest.raises(KeyboardInterrupt):
        refine(toy_run, tmp_path / "out", seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents(tmp_path / "out") == contents(toy_run.rounds)


def test_other_parameters_do_not_continue_from_what_was_left(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(steps, "check", interrupt)
        with pytest.raises(KeyboardInterrupt):
            refine(toy_run, tmp_path / "out", scratch=tmp_path / "scratch", seed=1)
    refine(toy_run, tmp_path / "out", scratch=tmp_path / "scratch")
    assert contents(tmp_path / "out") == contents(toy_run.rounds)


# --- how the rounds end ------------------------------------------------------------------------


def test_a_huge_epsilon_stops_after_the_first_comparison(toy_run: ToyRun, tmp_path: Path) -> None:
    calm = toys.JOINT.model_copy(update={"learning_rate": 1e-6})
    convergence = ConvergenceConfig(epsilon=1e6, max_rounds=5)
    history = refine(toy_run, tmp_path / "out", joint=calm, convergence=convergence)
    assert history.current.round == 2
    assert history.verdict in ("converged", "loss-rose")


def test_rounds_stop_as_converged(toy_run: ToyRun, tmp_path: Path) -> None:
    learning = toys.JOINT.model_copy(update={"epochs": 3, "learning_rate": 3e-3})
    convergence = ConvergenceConfig(epsilon=1e6, max_rounds=5)
    history = refine(toy_run, tmp_path / "out", joint=learning, convergence=convergence)
    assert (history.verdict, history.current.round, history.best_round) == ("converged", 2, 2)


def test_rounds_stop_as_max_rounds(toy_run: ToyRun, tmp_path: Path) -> None:
    history = refine(toy_run, tmp_path / "out", convergence=ConvergenceConfig(max_rounds=1))
    assert (history.verdict, history.best_round) == ("max-rounds", 1)


@pytest.mark.parametrize("reason", ["loss-rose", "collapsed"])
def test_a_loss_that_rose_or_a_collapse_stops_with_the_round_before_as_the_best(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "collapsed":  # in round 1
        monkeypatch.setattr("vitdc.convergence.is_collapsed", lambda *embedded: True)
    # so high a learning rate that the loss must rise in some round
    wild = JointConfig(epochs=2, batch_size=16, learning_rate=0.2, warmup_epochs=0, clip_norm=0)
    rounds, convergence = tmp_path / "rounds", ConvergenceConfig(epsilon=0, max_rounds=20)
    history = refine(toy_run, rounds, joint=wild, convergence=convergence)
    assert history.verdict == reason
    assert history.best_round == history.current.round - 1
    found = steps.evaluate(
        **loop.round_arguments(loop.round_directories(rounds)),
        dataset=toy_run.dataset,
        evaluation=toys.EVALUATION.model_copy(update={"map_points": 0}),
        compute=COMPUTE,
        seed=0,
        output=tmp_path / "results",
    )
    best = RoundPaths.in_directory(rounds / f"{history.best_round:02d}")
    assert found.metrics["best_round"] == history.best_round
    assert found.metrics["loss"] == history.rows[history.best_round].loss
    assert found.metrics["test"] == Clustering.load(best.clustering).scores.test._asdict()
    assert contents(tmp_path / "results" / "model" / "checkpoint") == contents(best.checkpoint)
    assert reason in describe(found)


def test_a_training_that_fails_leaves_no_rounds(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "augment", lambda images, config: images * float("nan"))
    with pytest.raises(TrainingError, match="round 1, epoch 1, step 1"):
        refine(toy_run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- what is reported --------------------------------------------------------------------------


def test_on_round_hears_of_every_round_with_its_scores(toy_run: ToyRun, tmp_path: Path) -> None:
    heard: list[tuple[list[RoundRow], int]] = []
    refine(toy_run, tmp_path / "out", on_round=lambda rows, c: heard.append((rows, c.round)))
    assert [(len(rows), number) for rows, number in heard] == [(1, 0), (2, 1), (3, 2)]
    for rows, number in heard:
        scores = Clustering.load(toy_run.paths(number).clustering).scores
        assert rows[-1].nmi_test == scores.test.nmi
        assert rows[-1].changed == scores.changed


def test_rounds_do_not_start_from_a_retrained_model(toy_run: ToyRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is of round 1"):
        refine(toy_run, tmp_path / "out", checkpoint=toy_run.paths(1).checkpoint)


def test_rounds_are_found_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (*range(12), 99, 100, 101):
        (tmp_path / f"{number:02d}").mkdir()
    (tmp_path / "03.partial").mkdir()
    found = [int(path.name) for path in loop.round_directories(tmp_path)]
    assert found == [*range(12), 99, 100, 101]


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_place_without_rounds_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{name}: no finished rounds here"):
        loop.round_directories(tmp_path / name)
