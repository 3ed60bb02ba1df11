"""The training loop: it learns, repeats itself to the byte, and survives being interrupted."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import COMPUTE, MODEL, from_call, interrupt, toy_images

from vitdc import training
from vitdc.artifacts import TrainingState
from vitdc.config import PretrainingConfig
from vitdc.errors import TrainingError
from vitdc.model import DeepClusteringViT, build_model
from vitdc.objectives import Anchors, Joint, Supervised, supervised
from vitdc.seeding import seeded
from vitdc.training import learning_rate, num_batches, train

LABELS = np.arange(39) % 3  # three batches of at most 16, the last one odd
HARD = {  # everything that draws random numbers
    "flip": True,
    "shift": 0.1,
    "rotate": 10,
    "zoom": 0.1,
    "jitter": 0.1,
    "mixup": 0.4,
    "cutmix": 0.4,
    "label_smoothing": 0.1,
}
History = list[dict[str, float]]


def config(**values: Any) -> PretrainingConfig:
    return PretrainingConfig(**{"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, **values})


class Data(NamedTuple):
    images: np.ndarray
    labels: np.ndarray
    anchors: Anchors | None = None


def data(*, labels: np.ndarray = LABELS, anchored: bool = False) -> Data:
    """Toy images; anchored to centroids on the axes, one per true class."""
    anchors = Anchors(np.eye(3, 16, dtype=np.float32), LABELS, gamma=0.5) if anchored else None
    return Data(toy_images(LABELS), labels, anchors)


def fresh_model(drop_path: float = 0.0) -> DeepClusteringViT:
    with seeded(0, "weights"):
        return build_model(
            MODEL.model_copy(update={"drop_path": drop_path}),
            image_shape=(8, 8, 1),
            num_outputs=3,
            mean=(0.4,),
            std=(0.2,),
        )


def run(
    training_data: Data,
    training_config: PretrainingConfig,
    *,
    seed: int = 0,
    scratch: Path | None = None,
    drop_path: float = 0.0,
) -> tuple[DeepClusteringViT, History]:
    model = fresh_model(drop_path)
    history = train(
        model,
        training_data.images,
        Joint(Supervised(training_data.labels, training_config), training_data.anchors),
        training_config,
        compute=COMPUTE,
        seed=seed,
        stream=("retrain", 2),
        scratch=scratch,
    )
    return model, history


def weights(model: DeepClusteringViT) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


# --- it learns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("anchored", [False, True])
def test_the_loss_falls_on_the_toy(anchored: bool) -> None:
    model, history = run(data(anchored=anchored), config(epochs=20, learning_rate=1e-2))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert not model.training
    if anchored:
        assert history[-1]["clustering_loss"] < 0.5 * history[0]["clustering_loss"]


def test_history_has_a_row_per_epoch_whose_parts_add_up() -> None:
    _, history = run(data(anchored=True), config())
    assert [row["epoch"] for row in history] == [1, 2, 3]
    for row in history:
        total = row["cross_entropy"] + 0.5 * row["clustering_loss"]
        assert row["loss"] == pytest.approx(total, rel=1e-6)


def test_the_first_loss_is_that_of_the_untrained_model() -> None:
    _, history = run(data(anchored=True), config(epochs=1, batch_size=39, warmup_epochs=0))
    with torch.no_grad():
        pixels = torch.from_numpy(toy_images(LABELS) / 255).permute(0, 3, 1, 2).float()
        embedding, logits = (part.double().numpy() for part in fresh_model()(pixels))
    chosen = logits[np.arange(39), LABELS]
    cross_entropy = (np.log(np.exp(logits).sum(axis=1)) - chosen).mean()
    clustering = ((embedding - np.eye(3, 16)[LABELS]) ** 2).sum(axis=1).mean()
    assert history[0]["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)
    assert history[0]["clustering_loss"] == pytest.approx(clustering, rel=1e-5)


def test_no_epochs_leave_the_weights_alone() -> None:
    model, history = run(data(), config(epochs=0))
    assert history == []
    assert weights(model) == weights(fresh_model())


def test_unlabelled_images_carry_no_loss_without_anchors() -> None:
    labels = LABELS.copy()
    labels[:9] = -1
    with_unlabelled, history = run(data(labels=labels), config())
    without = Data(toy_images(LABELS)[9:], LABELS[9:])
    model, expected = run(without, config())
    assert history == expected
    assert weights(with_unlabelled) == weights(model)


def test_unlabelled_images_are_pulled_to_their_centroids() -> None:
    nothing_known = np.full_like(LABELS, -1)
    _, history = run(data(labels=nothing_known, anchored=True), config(epochs=8))
    assert all(row["cross_entropy"] == 0 for row in history)
    assert history[-1]["clustering_loss"] < 0.7 * history[0]["clustering_loss"]


@pytest.mark.parametrize("size", [1, 2, 17, 33])
def test_any_number_of_images_can_be_mixed(size: int) -> None:
    some = Data(toy_images(LABELS[:size]), LABELS[:size])
    model, history = run(some, config(epochs=1, mixup=1.0, cutmix=1.0))
    assert math.isfinite(history[0]["loss"])
    assert weights(model) != weights(fresh_model())


def test_every_epoch_visits_every_image_once_in_an_order_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[bytes] = []

    def watch(images: torch.Tensor, config: object) -> torch.Tensor:
        seen.extend(image.numpy().tobytes() for image in images)
        return images

    monkeypatch.setattr(supervised, "augment", watch)
    run(data(), config(epochs=3))
    epochs = [tuple(seen[start : start + 39]) for start in (0, 39, 78)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(epochs[0])) == 39
    assert len(set(epochs)) == 3


# --- it repeats itself -------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_others() -> None:
    first, again, other = (
        run(data(anchored=True), config(**HARD), seed=seed, drop_path=0.3) for seed in (0, 0, 1)
    )
    assert weights(first[0]) == weights(again[0]) != weights(other[0])
    assert first[1] == again[1] != other[1]


def test_what_ran_before_does_not_matter() -> None:
    first, _ = run(data(), config(**HARD))
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    second, _ = run(data(), config(**HARD))
    assert weights(first) == weights(second)


def test_the_callers_random_streams_are_left_alone() -> None:
    def state() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    before = state()
    run(data(), config(**HARD), drop_path=0.3)
    assert state() == before


@pytest.mark.parametrize("call", [1, 2, 4, 5, 9], ids=lambda call: f"batch {call}")
def test_an_interrupted_training_continues_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    settings = data(anchored=True), config(**HARD)
    undisturbed, expected = run(*settings, drop_path=0.3)
    with monkeypatch.context() as patch:
        given = from_call(call, use=interrupt, before=supervised.augment)
        patch.setattr(supervised, "augment", given)
        with pytest.raises(KeyboardInterrupt):
            run(*settings, scratch=tmp_path / "state", drop_path=0.3)
    kept = TrainingState.load(tmp_path / "state")
    assert (len(kept.history) if kept else 0) == (call - 1) // 3
    model, history = run(*settings, scratch=tmp_path / "state", drop_path=0.3)
    assert history == expected
    assert weights(model) == weights(undisturbed)


def test_a_finished_state_is_not_trained_further(tmp_path: Path) -> None:
    first, history = run(data(), config(), scratch=tmp_path / "state")
    again, same = run(data(), config(), scratch=tmp_path / "state")
    assert same == history
    assert weights(again) == weights(first)


# --- a loss that is not finite -----------------------------------------------------------------


def not_a_number(images: torch.Tensor, config: object) -> torch.Tensor:
    return images * torch.nan


@pytest.mark.parametrize("call", [4, 5, 6], ids=lambda call: f"batch {call}")
def test_a_loss_that_is_not_finite_stops_with_round_epoch_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    monkeypatch.setattr(
        supervised, "augment", from_call(call, use=not_a_number, before=supervised.augment)
    )
    with pytest.raises(TrainingError, match=f"round 2, epoch 2, step {call - 3} ") as caught:
        run(data(), config(), scratch=tmp_path / "state")
    assert str(tmp_path / "state") in str(caught.value)
    kept = TrainingState.load(tmp_path / "state")
    assert kept is not None
    assert len(kept.history) == 1
    assert all(tensor.isfinite().all() for tensor in kept.weights.values())


@pytest.mark.parametrize("with_scratch", [True, False])
def test_the_error_says_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_scratch: bool
) -> None:
    monkeypatch.setattr(supervised, "augment", not_a_number)
    message = "no epoch was finished" if with_scratch else "no --scratch was given"
    with pytest.raises(TrainingError, match=message):
        run(data(), config(), scratch=tmp_path / "state" if with_scratch else None)


# --- learning rate, throughput -----------------------------------------------------------------


@given(
    epochs=st.integers(1, 10),
    steps=st.integers(1, 20),
    warmup=st.floats(0, 12),
    floor=st.floats(0, 1),
)
def test_the_learning_rate_warms_up_to_the_peak_and_falls_along_a_cosine(
    epochs: int, steps: int, warmup: float, floor: float
) -> None:
    settings = config(
        epochs=epochs, learning_rate=0.1, warmup_epochs=warmup, final_learning_rate=floor
    )
    rates = np.array(
        [learning_rate(step, settings, steps_per_epoch=steps) for step in range(epochs * steps)]
    )
    peak = min(round(warmup * steps), epochs * steps - 1)
    assert rates.argmax() == peak or np.allclose(rates[peak:], 0.1)
    np.testing.assert_allclose(rates[: peak + 1], np.linspace(0, 0.1, peak + 2)[1:])
    along = np.linspace(0, np.pi, epochs * steps - peak + 1)[:-1]
    cosine = 0.1 * floor + 0.1 * (1 - floor) * (1 + np.cos(along)) / 2
    np.testing.assert_allclose(rates[peak:], cosine, atol=1e-12)


@given(num_images=st.integers(0, 50), batch_size=st.integers(1, 20), least=st.integers(1, 2))
def test_an_epoch_leaves_out_only_a_rest_that_is_too_small(
    num_images: int, batch_size: int, least: int
) -> None:
    sizes = [len(range(start, num_images)[:batch_size]) for start in range(0, 50, batch_size)]
    expected = sum(size >= least for size in sizes)
    if batch_size >= least:
        assert num_batches(num_images, batch_size, least=least) == expected


def test_weight_decay_spares_biases_norms_and_positions() -> None:
    model = fresh_model()
    optimizer = training._optimizer(
        torch.nn.ModuleDict({"model": model}), config(weight_decay=0.3), torch.device("cpu")
    )
    decayed = {
        id(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if group["weight_decay"] == 0.3
    }
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert names
    assert all(name.endswith("weight") and "norm" not in name for name in names)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(model.parameters())
    )


def test_clipping_bounds_the_first_update_only_where_it_is_on() -> None:
    def gradients_norm(clip_norm: float) -> float:
        seen = []
        original = torch.optim.AdamW.step

        def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
            gradients = [p.grad for g in self.param_groups for p in g["params"]]
            seen.append(torch.stack([g.norm() for g in gradients if g is not None]).norm().item())
            return original(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", step)
            run(data(), config(epochs=1, clip_norm=clip_norm))
        return max(seen)

    assert gradients_norm(0.01) == pytest.approx(0.01, rel=1e-3)
    assert gradients_norm(0) > 0.02


def test_throughput_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vitdc"):
        run(data(), config(epochs=2))
    assert "retrain, round 2: 78 images in" in caplog.text
    assert "images/s" in caplog.text


def test_bfloat16_trains_a_float32_model_to_nearly_the_same_loss() -> None:
    half = COMPUTE.model_copy(update={"precision": "bfloat16"})
    last = []
    for compute in (COMPUTE, half):
        model = fresh_model()
        images, labels, anchors = data(anchored=True)
        history = train(
            model,
            images,
            Joint(Supervised(labels, config()), anchors),
            config(epochs=10),
            compute=compute,
            seed=0,
            stream=("retrain", 1),
        )
        assert all(p.dtype == torch.float32 for p in model.parameters())
        last.append(history[-1]["loss"])
    assert last[0] != last[1]
    assert last[1] == pytest.approx(last[0], rel=0.1)
