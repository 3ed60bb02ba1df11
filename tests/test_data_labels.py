"""Which labels are trained on, and the words where they are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from toys import WriteImages, contents

from vitdc import steps
from vitdc.artifacts import Dataset
from vitdc.config import DataConfig
from vitdc.data import decoding
from vitdc.data.labels import KnownLabels
from vitdc.errors import InputError

LABELS = np.arange(40) % 4
PARTLY = np.where(LABELS == 3, -1, LABELS)
UNKNOWN = np.full(40, -1)


def choose(labels: np.ndarray, /, **data: object) -> np.ndarray | None:
    known = KnownLabels(DataConfig(**data))
    for rows in np.array_split(np.arange(len(labels)), 3):
        known.update([f"image {row}" for row in rows], labels[rows])
    return known.choose()


@pytest.mark.parametrize("labels", [LABELS, PARTLY, UNKNOWN])
def test_auto_takes_what_there_is(labels: np.ndarray) -> None:
    assert choose(labels) is None


@given(
    labels=st.lists(st.integers(-1, 3), min_size=1, max_size=60).map(np.array),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 5),
)
def test_a_fraction_keeps_that_share_of_every_class(
    labels: np.ndarray, fraction: float, seed: int
) -> None:
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    assume(len(classes) and fraction * counts.min() >= 0.5)
    known = choose(labels, label_fraction=fraction, seed=seed)
    assert known is not None
    assert (labels[known] >= 0).all()
    for label, count in zip(classes, counts, strict=True):
        kept = int(known[labels == label].sum())
        assert kept >= 1
        assert abs(kept - fraction * count) <= 0.5


@given(count=st.integers(2, 5000))
def test_the_fraction_that_is_proposed_is_accepted_and_a_smaller_one_is_not(count: int) -> None:
    labels = np.repeat([0, 1], [count, 5000])
    with pytest.raises(InputError, match=f"leaves no label of a class that has {count}") as caught:
        choose(labels, label_fraction=0.49 / count)
    proposed = float(str(caught.value).split("; ")[1].split(" ")[0])
    known = choose(labels, label_fraction=proposed)
    assert known is not None
    assert known[:count].sum() >= 1


@pytest.mark.parametrize(
    ("labels", "data", "message"),
    [
        (PARTLY, {"labels": "full"}, "full, but 10 of the 40 training images have no label"),
        (UNKNOWN, {"labels": "full"}, "full, but 40 of the 40 training images have no label"),
        (UNKNOWN, {"labels": "partial"}, "partial: none of the 40 training images has a label"),
        (UNKNOWN, {"label_fraction": 0.5}, "label_fraction: none of the 40 training images"),
        (LABELS, {"labels": "partial"}, "partial, but all 40 training images have a label"),
    ],
)
def test_labels_that_are_not_as_asked_for_are_refused(
    labels: np.ndarray, data: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose(labels, **data)


def test_full_is_refused_before_anything_is_decoded(
    write_images: WriteImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images("1.png", "2.png", "3.png")
    monkeypatch.setattr(decoding, "decode_chunk", lambda *_: pytest.fail("decoded"))
    data = DataConfig(
        source="folder", root=str(folder), image_size=8, labels="full", test_fraction=0
    )
    with pytest.raises(InputError, match="3 of the 3 training images have no label"):
        steps.prepare(data=data, output=tmp_path / "dataset")


@pytest.mark.parametrize(
    ("labels", "supervision"), [("auto", "full"), ("full", "full"), ("none", "none")]
)
def test_labels_that_are_not_trained_on_are_kept_for_the_scores(
    tmp_path: Path, labels: str, supervision: str
) -> None:
    data = DataConfig(max_train=40, max_test=10, labels=labels)
    found = steps.prepare(data=data, output=tmp_path / "dataset")
    assert found.supervision == supervision
    assert found.train.has_labels
    expected = found.train.labels if supervision == "full" else np.full(40, -1)
    np.testing.assert_array_equal(found.training_labels, expected)
    assert ("train_known.npy" in contents(tmp_path / "dataset")) == (supervision == "none")


def test_a_fraction_makes_a_partly_labelled_data_set_of_the_same_content(tmp_path: Path) -> None:
    whole, part = (
        steps.prepare(
            data=DataConfig(max_train=60, max_test=10, label_fraction=fraction),
            output=tmp_path / name,
        )
        for name, fraction in (("whole", None), ("part", 0.5))
    )
    assert part.supervision == "partial"
    assert part.content_hash == whole.content_hash
    assert set(part.training_labels) == {-1, *range(10)}
    assert Dataset.load(tmp_path / "part").known.sum() == part.known.sum() == 30
