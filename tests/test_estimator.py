"""DeepClustering: scikit-learn's conventions outside, the steps of the command line inside."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import toys
import yaml
from PIL import Image
from servers import S3Server
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from sklearn.utils.validation import validate_data
from toys import contents

import vitdc
from vitdc import DeepClustering, steps
from vitdc.artifacts import Dataset, Evaluation
from vitdc.config import DataConfig, Params
from vitdc.data.given import GivenSource
from vitdc.errors import InputError
from vitdc.estimator import KNOBS
from vitdc.prediction import Predictor

TOY = {
    "num_clusters": 3,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "epochs": 3,
    "learning_rate": 3e-3,
    "round_epochs": 1,
    "max_rounds": 2,
    "epsilon": 0,
    "device": "cpu",
    "num_threads": 1,
    "batch_size": 16,
}
LABELS = np.arange(42) % 3
IMAGES = toys.toy_images(LABELS)
NEW = toys.toy_images(LABELS[:9], seed=1)


def toy(**parameters: Any) -> DeepClustering:
    return DeepClustering(**{**TOY, **parameters})


def quick(**parameters: Any) -> DeepClustering:
    """One that only has to run."""
    return toy(**{"epochs": 1, "max_rounds": 1, "depth": 1, **parameters})


@pytest.fixture(scope="module")
def fitted() -> DeepClustering:
    """Only to be read."""
    return toy().fit(IMAGES, LABELS)


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for temporary files that can be looked into."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def same(one: DeepClustering, other: DeepClustering) -> None:
    """Two estimators are fitted alike, to the last bit."""
    np.testing.assert_array_equal(one.labels_, other.labels_)
    np.testing.assert_array_equal(one.cluster_centers_, other.cluster_centers_)
    np.testing.assert_array_equal(one.transform(NEW), other.transform(NEW))
    assert one.rounds_ == other.rounds_
    assert one.history_ == other.history_


# --- the same numbers as the command line ------------------------------------------------------


def run_vitdc(*arguments: object, params: dict[str, Any], cwd: Path) -> None:
    (cwd / "params.yaml").write_text(yaml.safe_dump({**params, "tracking": {"enabled": False}}))
    program = "from vitdc.cli import main; main()"
    command = ["python", "-c", program, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True)


@pytest.mark.usefixtures("warm_path")
def test_arrays_give_the_numbers_of_the_command_line(tmp_path: Path) -> None:
    run_vitdc("run", "--output", "run", params=toys.SMALL_PARAMS, cwd=tmp_path)
    digits = Dataset.load(tmp_path / "run" / "dataset")
    model = DeepClustering(params=tmp_path / "params.yaml")
    model.fit(
        digits.train.images / np.float32(255),
        np.array(digits.class_names)[digits.train.labels],
        test=(digits.test.images, np.array(digits.class_names)[digits.test.labels]),
    )
    model.save(tmp_path / "saved")
    results = Evaluation.load(tmp_path / "run" / "results")
    assert model.rounds_ == [vars(row) for row in results.rows]
    assert model.stop_reason_ == results.metrics["stop_reason"]
    rows = list(results.clusters())
    assert model.labels_.tolist() == [row.cluster for row in rows if row.split == "train"]
    assert model.predict(digits.test.images).tolist() == [
        row.cluster for row in rows if row.split == "test"
    ]
    saved, expected = contents(tmp_path / "saved"), contents(results.path / "model")
    payload = [name for name in expected if not name.endswith("artifact.json")]  # names the source
    assert {name: saved[name] for name in payload} == {name: expected[name] for name in payload}


@pytest.mark.usefixtures("warm_path")
def test_a_folder_gives_the_bytes_of_the_command_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images")
    data = {"image_size": 8, "channels": 1, "test_fraction": 0.25, "num_workers": 1}
    params = {**toys.SMALL_PARAMS, "clustering": {"num_clusters": 3}, "data": data}
    settings = ["-S", "data.source=folder", "-S", f"data.root={folder}"]
    run_vitdc("run", "--output", "run", *settings, params=params, cwd=tmp_path)
    model = DeepClustering(params=params, directory=tmp_path / "fit").fit(folder)
    assert contents(tmp_path / "fit") == contents(tmp_path / "run")
    assert model.image_names_.tolist() == sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*.png")
    )
    clusters = {
        row.image: row.cluster for row in Evaluation.load(tmp_path / "fit/results").clusters()
    }
    assert model.labels_.tolist() == [clusters[name] for name in model.image_names_]


def write_folder(folder: Path, number: int = 24) -> Path:
    for index in range(number):
        path = folder / toys.CLASS_NAMES[index % 3] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[index, ..., 0]).save(path)
    return folder


def test_every_fit_is_the_same_for_a_seed_and_another_for_another(fitted: DeepClustering) -> None:
    same(clone(fitted).fit(IMAGES, LABELS), fitted)
    other = toy(random_state=1).fit(IMAGES, LABELS)
    assert not np.array_equal(other.cluster_centers_, fitted.cluster_centers_)
    state = np.random.RandomState(5)
    one, two = (quick(random_state=clone_of(state)).fit(IMAGES, LABELS) for _ in range(2))
    same(one, two)
    before = one.cluster_centers_
    assert not np.array_equal(one.fit(IMAGES, LABELS).cluster_centers_, before)


def clone_of(state: Any) -> Any:
    return pickle.loads(pickle.dumps(state))


def test_the_random_state_of_the_program_is_left_alone() -> None:
    import torch

    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    quick().fit(IMAGES, LABELS)
    assert (torch.rand(1), np.random.rand()) == expected  # noqa: NPY002


# --- kinds of images ---------------------------------------------------------------------------


class Pairs:
    """A torch Dataset of pairs (tensor, class index)."""

    def __new__(cls, *columns: Any, **names: Any) -> Any:
        import torch

        class Dataset(torch.utils.data.Dataset):  # type: ignore[type-arg]
            def __len__(self) -> int:
                return len(columns[0])

            def __getitem__(self, index: int) -> Any:
                row = tuple(column[index] for column in columns)
                return row if len(row) > 1 else row[0]

        dataset = Dataset()
        vars(dataset).update(names)
        return dataset


def streamed(*columns: Any) -> Any:
    import torch

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            return zip(*columns, strict=True)

    return Stream()


def forms() -> dict[str, Callable[[], tuple[Any, Any]]]:
    """The toy images and labels in every form."""
    import torch

    tensor = torch.from_numpy(IMAGES)
    first = tensor.permute(0, 3, 1, 2)
    floats = first.float() / 255
    return {
        "array without channels": lambda: (IMAGES[..., 0], LABELS),
        "array of floats": lambda: (IMAGES / 255, LABELS),
        "list of arrays": lambda: (list(IMAGES), LABELS.tolist()),
        "list of pictures": lambda: ([Image.fromarray(x[..., 0]) for x in IMAGES], LABELS),
        "tensor, channels first": lambda: (first, torch.from_numpy(LABELS)),
        "tensor, channels last": lambda: (tensor, LABELS),
        "tensor without channels": lambda: (tensor[..., 0], LABELS),
        "tensor of floats": lambda: (floats, LABELS),
        "tensor of doubles": lambda: (floats.double(), pd.Series(LABELS)),
        "Dataset of images": lambda: (Pairs(floats), LABELS),
        "Dataset of pairs": lambda: (Pairs(floats, LABELS), None),
        "Dataset of tensors": lambda: (
            torch.utils.data.TensorDataset(first, torch.from_numpy(LABELS)),
            None,
        ),
        "IterableDataset": lambda: (streamed(floats, LABELS), None),
    }


@pytest.mark.parametrize("form", forms())
def test_every_form_of_the_same_images_gives_the_same(form: str, fitted: DeepClustering) -> None:
    images, labels = forms()[form]()
    if form in ("array of floats", "Dataset of pairs", "list of pictures", "IterableDataset"):
        same(toy().fit(images, labels), fitted)
    np.testing.assert_array_equal(fitted.predict(images), fitted.predict(IMAGES))
    np.testing.assert_array_equal(fitted.transform(images), fitted.transform(IMAGES))


def test_a_dataset_is_read_a_chunk_at_a_time() -> None:
    read = []

    class Watched:
        def __len__(self) -> int:
            return 3000

        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return IMAGES[index % 42]

    labels = np.arange(3000) % 3
    config = DataConfig(test_fraction=0)
    source = GivenSource.open(Pairs(Watched()), labels, test=None, config=config)
    batches = source.batches()
    first = next(batches)
    assert len(first.images) == 1024
    assert max(read) == 1023
    assert sum(len(batch.images) for batch in batches) == 3000 - 1024


def test_colour_and_oblong_images_work() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, 4, 8, 3), np.uint8)
    model = quick().fit(images, np.arange(12) % 2)
    assert model.image_shape_ == (4, 8, 3)
    assert model.predict(np.moveaxis(images, 3, 1).transpose(0, 2, 3, 1)).shape == (12,)


def test_images_are_converted_only_if_the_parameters_say_so(fitted: DeepClustering) -> None:
    large = toys.toy_images(LABELS, side=16)
    with pytest.raises(InputError, match="images of 16x16x1, but 8x8x1 are needed; set image_size"):
        fitted.predict(large)
    with pytest.raises(InputError, match="images with 3 channels, but 1 are needed"):
        fitted.predict(np.repeat(IMAGES, 3, axis=3))
    converting = toy(image_size=8, params={"data": {"channels": 1}}).fit(large, LABELS)
    assert converting.image_shape_ == (8, 8, 1)
    assert len(converting.predict(np.repeat(large, 3, axis=3))) == 42
    with pytest.raises(InputError, match=r"images\[1\]: images of 16x16x1, but 8x8x1 are needed"):
        quick().fit([IMAGES[0], large[0]], [0, 1])


def test_a_fitted_model_needs_its_parameters_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump({"data": {"image_size": 8}}))
    large = toys.toy_images(LABELS, side=16)
    model = quick(params="params.yaml").fit(large, LABELS)
    expected = model.predict(large)
    Path("params.yaml").unlink()
    model.set_params(image_size=4, params=None)
    for each in (model, pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(each.predict(large), expected)
        assert len(each.predict(write_folder(tmp_path / "images"))) == 24


def test_a_folder_is_predicted_in_the_order_of_its_names(
    fitted: DeepClustering, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "images")
    order = [
        int(name[-6:-4])
        for name in sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    ]
    np.testing.assert_array_equal(fitted.predict(folder), fitted.predict(IMAGES[order]))
    np.testing.assert_array_equal(fitted.predict(str(folder)), fitted.predict(folder))
    (folder / "left" / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"left/text.png is unreadable \(not an image"):
        fitted.predict(folder)


def test_no_images_are_no_clusters(fitted: DeepClustering) -> None:
    assert fitted.predict(IMAGES[:0]).shape == (0,)
    assert fitted.transform(IMAGES[:0]).shape == (0, 16)
    assert fitted.predict([]).shape == (0,)


# --- labels ------------------------------------------------------------------------------------


def test_labels_may_be_strings_and_any_numbers(fitted: DeepClustering) -> None:
    for labels in (np.array(["a", "b", "c"])[LABELS], LABELS * 10 + 5, LABELS.astype(float)):
        model = toy().fit(IMAGES, labels)
        np.testing.assert_array_equal(model.labels_, fitted.labels_)
        assert model.classes_.tolist() == sorted(set(labels))
    mixed = [np.str_("a"), "b", np.str_("c")]  # of a list that came from an array
    same(toy().fit(IMAGES, [mixed[label] for label in LABELS]), fitted)


def test_unknown_labels_are_minus_1_or_none() -> None:
    some = np.where(LABELS == 2, -1, LABELS)
    model = quick().fit(IMAGES, some)
    assert model.classes_.tolist() == [0, 1]
    named = [None if label < 0 else f"class {label}" for label in some]
    same(quick().fit(IMAGES, named), model)
    same(quick().fit(IMAGES, np.array([-1 if n is None else n for n in named], object)), model)
    same(quick().fit(Pairs(IMAGES, some), None), model)


def test_a_dataset_may_name_its_classes() -> None:
    model = quick().fit(Pairs(IMAGES, LABELS, classes=["left", "right", "bottom", "never"]))
    assert model.classes_.tolist() == ["left", "right", "bottom", "never"]


def test_held_out_images_are_scored_and_never_trained_on(fitted: DeepClustering) -> None:
    model = toy().fit(IMAGES, LABELS, test=(NEW, LABELS[:9]))
    np.testing.assert_array_equal(model.labels_, fitted.labels_)
    np.testing.assert_array_equal(model.cluster_centers_, fitted.cluster_centers_)
    expected = normalized_mutual_info_score(LABELS[:9], model.predict(NEW))
    assert model.rounds_[model.best_round_]["nmi_test"] == pytest.approx(expected)
    assert fitted.rounds_[-1]["nmi_test"] is None
    paired = toy().fit(Pairs(IMAGES, LABELS), test=(Pairs(NEW, LABELS[:9]), None))
    assert paired.rounds_ == model.rounds_


def test_a_share_held_out_is_clustered_in_its_place() -> None:
    model = quick(test_fraction=0.25).fit(IMAGES, LABELS)
    assert len(model.labels_) == 42
    np.testing.assert_array_equal(model.labels_, model.predict(IMAGES))
    assert model.rounds_[-1]["nmi_test"] is not None


# --- scikit-learn ------------------------------------------------------------------------------


def test_fit_predict_and_fit_transform_are_fit_and_then_the_rest(fitted: DeepClustering) -> None:
    np.testing.assert_array_equal(toy().fit_predict(IMAGES, LABELS), fitted.labels_)
    np.testing.assert_array_equal(fitted.predict(IMAGES), fitted.labels_)
    np.testing.assert_array_equal(toy().fit_transform(IMAGES, LABELS), fitted.transform(IMAGES))


def test_images_and_labels_may_be_named(fitted: DeepClustering) -> None:
    np.testing.assert_array_equal(fitted.predict(images=NEW), fitted.predict(NEW))
    np.testing.assert_array_equal(fitted.transform(images=NEW), fitted.transform(NEW))
    np.testing.assert_array_equal(fitted.distances(images=NEW), fitted.distances(NEW))
    assert fitted.score(images=NEW, labels=LABELS[:9]) == fitted.score(NEW, LABELS[:9])
    embedded = toy().fit_transform(images=IMAGES, labels=LABELS)
    np.testing.assert_array_equal(embedded, fitted.transform(IMAGES))
    np.testing.assert_array_equal(toy().fit_predict(images=IMAGES, labels=LABELS), fitted.labels_)
    frame = toy().set_output(transform="pandas").fit_transform(images=IMAGES, labels=LABELS)
    np.testing.assert_array_equal(frame.to_numpy(), embedded)
    with pytest.raises(InputError, match="score: needs labels"):
        make_pipeline(fitted).score(NEW)


def test_distances_are_those_of_the_embeddings_to_the_centres(fitted: DeepClustering) -> None:
    difference = fitted.transform(NEW)[:, None] - fitted.cluster_centers_.astype(float)
    expected = np.sqrt((difference**2).sum(axis=2))
    np.testing.assert_allclose(fitted.distances(NEW), expected, rtol=1e-5)
    np.testing.assert_array_equal(fitted.predict(NEW), expected.argmin(axis=1))
    found = fitted.assign(NEW)
    np.testing.assert_allclose(found.distance, expected.min(axis=1), rtol=1e-5)


def test_the_score_is_the_nmi(fitted: DeepClustering) -> None:
    expected = normalized_mutual_info_score(LABELS[:9], fitted.predict(NEW))
    assert fitted.score(NEW, LABELS[:9]) == pytest.approx(expected)
    half = np.where(np.arange(9) < 4, -1, LABELS[:9])
    expected = normalized_mutual_info_score(half[4:], fitted.predict(NEW[4:]))
    assert fitted.score(NEW, half) == pytest.approx(expected)


def test_it_is_a_step_of_a_pipeline(fitted: DeepClustering) -> None:
    flat = IMAGES.reshape(42, -1)
    to_images = FunctionTransformer(lambda rows: rows.reshape(-1, 8, 8))
    last = make_pipeline(to_images, toy())
    np.testing.assert_array_equal(last.fit_predict(flat, LABELS), fitted.labels_)
    np.testing.assert_array_equal(last.predict(flat), fitted.labels_)
    first = Pipeline([("embed", toy()), ("classify", LogisticRegression())])
    alone = LogisticRegression().fit(fitted.transform(IMAGES), LABELS)
    np.testing.assert_array_equal(
        first.fit(IMAGES, LABELS).predict(NEW), alone.predict(fitted.transform(NEW))
    )
    same(first[0], fitted)
    first.set_params(embed__gamma=0.5)
    assert first[0].gamma == 0.5


def test_it_is_searched_over_in_processes() -> None:
    search = GridSearchCV(quick(), {"gamma": [0, 0.1]}, cv=2, n_jobs=2, error_score="raise")
    search.fit(IMAGES, LABELS)
    assert set(search.cv_results_["param_gamma"]) == {0, 0.1}
    assert 0 <= search.best_score_ <= 1


def test_embeddings_come_as_a_data_frame_if_asked_for() -> None:
    model = quick().set_output(transform="pandas").fit(IMAGES, LABELS)
    table = model.transform(NEW)
    assert list(table.columns) == [f"deepclustering{i}" for i in range(16)]
    assert model.predict(NEW).shape == (9,)
    assert model.distances(NEW).shape == (9, 3)


def test_clone_keeps_the_parameters_and_forgets_the_fit(fitted: DeepClustering) -> None:
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(IMAGES)


@pytest.mark.parametrize("method", ["predict", "transform", "distances", "assign", "score", "save"])
def test_what_is_not_fitted_says_so(method: str) -> None:
    arguments = {"score": (IMAGES, LABELS), "save": ("there",)}.get(method, (IMAGES,))
    with pytest.raises(NotFittedError):
        getattr(toy(), method)(*arguments)


NOT_APPLICABLE = {
    "check_fit2d_1sample": "one image cannot make two clusters, and that is what the error says",
    "check_array_api_input": "needs SCIPY_ARRAY_API in the environment",
}


class OfTables(DeepClustering):
    """Rows of numbers as pictures of one line, with scikit-learn's own validation of tables.

    With it the checks for estimators of tables run on everything behind that validation.
    """

    def fit(self, X: Any, y: Any = None) -> Any:  # type: ignore[override]  # noqa: N803
        if y is None:
            X = validate_data(self, X)  # noqa: N806
        else:
            X, y = validate_data(self, X, y)  # noqa: N806
        self._low, self._high = X.min(), X.max()
        return super().fit(self._pictures(X), y)

    def fit_predict(self, X: Any, y: Any = None) -> Any:  # type: ignore[override]  # noqa: N803
        return self.fit(X, y).labels_

    def fit_transform(self, X: Any, y: Any = None) -> Any:  # type: ignore[override]  # noqa: N803
        return self.fit(X, y).transform(X)

    def score(self, X: Any, y: Any = None) -> float:  # noqa: N803
        return super().score(X, y)

    def _batches(self, images: Any) -> Iterator[np.ndarray]:
        return super()._batches(self._pictures(validate_data(self, images, reset=False)))

    def _pictures(self, table: np.ndarray) -> np.ndarray:
        scaled = (table - self._low) / max(self._high - self._low, 1)
        return np.clip(scaled, 0, 1)[:, None, :]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


@pytest.mark.filterwarnings("ignore")
def test_it_passes_the_checks_of_scikit_learn_that_apply() -> None:
    small = {"num_clusters": 2, "patch_size": 1, "embed_dim": 4, "depth": 1, "num_heads": 1}
    short = {"epochs": 1, "round_epochs": 1, "max_rounds": 1, "num_threads": 1, "device": "cpu"}
    found = estimator_checks.check_estimator(OfTables(**small, **short), on_fail=None, on_skip=None)
    others = {check["check_name"] for check in found if check["status"] != "passed"}
    assert others == set(NOT_APPLICABLE)
    assert len(found) > 40


# --- what a person sees, and what stays behind -------------------------------------------------


def test_silence_is_the_default_and_nothing_is_left(
    capfd: pytest.CaptureFixture[str], temporary_files: Path
) -> None:
    quick().fit(IMAGES, LABELS).predict(NEW)
    assert capfd.readouterr() == ("", "")
    assert list(temporary_files.iterdir()) == []


def test_verbose_shows_every_step_and_every_round(capfd: pytest.CaptureFixture[str]) -> None:
    toy(verbose=1).fit(IMAGES, LABELS)
    out, err = capfd.readouterr()
    assert "images: 42 training and 0 test images of 8x8x1, 3 classes" in out
    assert out.count("continue") == 2  # rounds 0 and 1
    assert "stopped: max-rounds" in out
    assert "retrain, round 2" in err


def test_an_interrupted_fit_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, temporary_files: Path
) -> None:
    monkeypatch.setattr("vitdc.loop.refine", toys.interrupt)
    with pytest.raises(KeyboardInterrupt):
        quick().fit(IMAGES, LABELS)
    assert list(temporary_files.iterdir()) == []


def test_an_interrupted_fit_in_a_directory_continues(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fitted: DeepClustering
) -> None:
    evaluation = {"gallery_size": 2, "map_points": 20}
    model = toy(directory=tmp_path / "work", params={"evaluation": evaluation})
    stopping = toys.from_call(2, use=toys.interrupt, before=steps.retrain)
    with monkeypatch.context() as patched:
        patched.setattr("vitdc.steps.retrain", stopping)
        with pytest.raises(KeyboardInterrupt):
            model.fit(IMAGES, LABELS)
    counted = toys.from_call(2, use=toys.interrupt, before=steps.retrain)  # one is left to do
    monkeypatch.setattr("vitdc.steps.retrain", counted)
    same(model.fit(IMAGES, LABELS), fitted)
    kept = {path.name for path in (tmp_path / "work").iterdir()}
    assert kept == {"dataset", "pretrained", "rounds", "results"}
    assert (tmp_path / "work" / "results" / "report.html").is_file()


# --- files -------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_with_everything(fitted: DeepClustering, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    loaded = DeepClustering.load(tmp_path / "model")
    same(loaded, fitted)
    for name in [name for name in vars(fitted) if name.endswith("_")]:
        assert np.array_equal(getattr(loaded, name), getattr(fitted, name)), name
    for name in KNOBS:
        value = fitted.get_params()[name]
        assert value is None or loaded.get_params()[name] == value
    same(clone(loaded).fit(IMAGES, LABELS), fitted)
    loaded.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "model")
    assert not [n for n in contents(tmp_path / "model") if n.endswith((".pkl", ".pt", ".joblib"))]


def test_what_was_saved_does_not_depend_on_what_a_program_does_to_the_tables(
    tmp_path: Path,
) -> None:
    model = quick().fit(IMAGES, LABELS)
    model.save(tmp_path / "before")
    model.labels_[:] = 0
    model.rounds_[0].clear()
    model.history_[0].clear()
    model.save(tmp_path / "after")
    assert contents(tmp_path / "before") == contents(tmp_path / "after")


@pytest.mark.usefixtures("s3_credentials")
def test_images_in_s3_are_those_of_the_folder(s3_server: S3Server, tmp_path: Path) -> None:
    folder, client = write_folder(tmp_path / "images"), s3_server.client()
    client.create_bucket(Bucket="estimator")
    for file in folder.rglob("*.png"):
        client.upload_file(str(file), "estimator", f"a/{file.relative_to(folder).as_posix()}")
    data = {"image_size": 8, "channels": 1, "endpoint_url": s3_server.endpoint_url}
    local = quick(params={"data": data}).fit(folder)
    remote = quick(params={"data": data}).fit("s3://estimator/a")
    same(remote, local)
    np.testing.assert_array_equal(remote.predict("s3://estimator/a"), local.predict(folder))


def test_two_batch_sizes_are_loaded_as_two(tmp_path: Path) -> None:
    sizes = {"pretraining": {"batch_size": 8}, "joint": {"batch_size": 21}}
    quick(batch_size=None, params=sizes).fit(IMAGES, LABELS).save(tmp_path / "model")
    loaded = DeepClustering.load(tmp_path / "model")
    assert loaded.batch_size is None
    found = loaded._parameters()
    assert (found.pretraining.batch_size, found.joint.batch_size) == (8, 21)


def test_predictions_are_those_of_the_predictor(fitted: DeepClustering, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    expected = Predictor.load(tmp_path / "model", toys.COMPUTE).predict(NEW)
    found = fitted.assign(NEW)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_array_equal(fitted.predict(NEW), expected.cluster)


def test_a_saved_model_is_replaced_and_nothing_else_is(
    fitted: DeepClustering, tmp_path: Path
) -> None:
    for _ in range(2):
        fitted.save(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("precious")
    with pytest.raises(InputError, match="was not written by vitdc"):
        fitted.save(tmp_path / "photos")


def test_the_results_of_the_command_line_are_loaded(toy_run: toys.ToyRun) -> None:
    model = DeepClustering.load(toy_run.results, device="cpu")
    results = Evaluation.load(toy_run.results)
    assert model.rounds_ == [vars(row) for row in results.rows]
    assert model.labels_.tolist() == [row.cluster for row in results.clusters()]
    train = Dataset.load(toy_run.dataset).train.images
    np.testing.assert_array_equal(model.predict(train), model.labels_[: len(train)])
    parameters = model.get_params()
    assert (parameters["num_clusters"], parameters["gamma"], parameters["depth"]) == (3, 0.5, 2)
    alone = DeepClustering.load(toy_run.results / "model")
    np.testing.assert_array_equal(alone.labels_, model.labels_[: len(train)])


def test_the_number_of_clusters_may_be_found() -> None:
    model = quick(num_clusters="auto").fit(IMAGES, LABELS)
    assert model.get_params()["num_clusters"] == "auto"
    assert 2 <= len(model.cluster_centers_) <= 20
    assert model.labels_.max() < len(model.cluster_centers_)


def test_what_is_no_model_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model here"):
        DeepClustering.load(tmp_path)


def test_a_fitted_estimator_survives_joblib(fitted: DeepClustering, tmp_path: Path) -> None:
    fitted.predict(NEW)
    joblib.dump(fitted, tmp_path / "model.joblib")
    same(joblib.load(tmp_path / "model.joblib"), fitted)
    assert pickle.loads(pickle.dumps(toy())).get_params() == toy().get_params()


# --- parameters and what is wrong --------------------------------------------------------------


def test_parameters_come_from_the_call_then_from_params_then_from_the_defaults(
    tmp_path: Path,
) -> None:
    params = {"joint": {"gamma": 0.7, "epochs": 3}, "seed": 4}
    model = DeepClustering(gamma=0.2, params=params)
    found = model._parameters()
    assert (found.joint.gamma, found.joint.epochs, found.seed) == (0.2, 3, 4)
    assert found.clustering == Params().clustering
    assert found.data.test_fraction == 0
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert DeepClustering(gamma=0.2, params=tmp_path / "params.yaml")._parameters() == found


def test_numbers_of_numpy_are_numbers() -> None:
    model = DeepClustering(np.int64(7), gamma=np.float32(0.5), random_state=np.int32(3))
    found = model._parameters()
    assert (found.clustering.num_clusters, found.joint.gamma, found.seed) == (7, 0.5, 3)


def test_epochs_are_those_of_the_initial_training_with_labels_and_without() -> None:
    params = {"pretraining": {"batch_size": 8, "self_supervised": {"epochs": 9, "shift": 0.3}}}
    found = DeepClustering(epochs=4, params=params)._parameters().pretraining
    assert (found.epochs, found.batch_size) == (4, 8)
    assert (found.self_supervised.epochs, found.self_supervised.shift) == (4, 0.3)


def test_every_parameter_of_the_constructor_is_documented_once() -> None:
    names = inspect.signature(DeepClustering).parameters
    documentation = DeepClustering.__doc__ or ""
    assert {*KNOBS, "random_state", "params", "directory", "verbose"} == set(names)
    for name in names:
        assert documentation.count(f"\n    {name}: ") == 1


def refused(message: str, action: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


WRONG_IMAGES = {
    "rows": (IMAGES.reshape(42, -1), "42x64 are rows of numbers, not images"),
    "channels first": (IMAGES.transpose(0, 3, 1, 2), "arrays have the channels last"),
    "four channels": (np.zeros((42, 8, 8, 4), "u1"), "C is 1 or 3"),
    "one number": (np.array(3), "a scalar are not images"),
    "integers": (IMAGES.astype(int), "of type int64, but uint8 or floats"),
    "large floats": (IMAGES.astype(float), r"floats from 0 to \d+, but they must lie in \[0, 1\]"),
    "negative floats": (IMAGES / -255, "floats from -"),
    "not a number": (np.full((42, 8, 8), np.nan), "some values are not finite"),
    "no pixels": (np.zeros((42, 0, 8), "u1"), "have no pixels"),
    "words": (["word"] * 42, r"images\[0\]: a str is no image|a str is no image"),
    "a number": (5, "cannot be read from a int"),
    "nothing": (None, "cannot be read from a NoneType"),
    "a table": (pd.DataFrame({"a": [1]}), "cannot be read from a DataFrame"),
    "no folder": ("nowhere", "nowhere: no such folder"),
}


@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_what_are_no_images_is_refused(name: str, fitted: DeepClustering) -> None:
    images, message = WRONG_IMAGES[name]
    labels = None if isinstance(images, str) else LABELS
    refused(message, lambda: fitted.predict(images))
    refused(message, lambda: quick(image_size=8).fit(images, labels))


WRONG_LABELS = {
    "too few": (LABELS[:-1], "41 for 42 images"),
    "two columns": (np.stack([LABELS, LABELS], axis=1), r"of shape \(42, 2\)"),
    "fractions": (LABELS + 0.5, "0.5 is no label"),
    "missing": (np.where(LABELS, LABELS, np.nan), "nan is no label"),
    "negative": (LABELS - 2, "-2 is no label"),
    "mixed": (["a", 1] * 21, "strings and numbers are mixed"),
    "twins": (["caf\u00e9", "cafe\u0301"] * 21, "the same text in two Unicode forms"),
    "unknown as text": (np.array(["a", "-1"] * 21), "'-1' in an array of strings"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_what_are_no_labels_is_refused(name: str) -> None:
    labels, message = WRONG_LABELS[name]
    refused(message, lambda: quick().fit(IMAGES, labels))


@pytest.mark.parametrize("labels", [None, np.full(42, -1)], ids=["none", "unknown"])
def test_images_without_labels_are_clustered(labels: np.ndarray | None) -> None:
    model = quick().fit(IMAGES, labels)
    assert set(model.labels_) <= {0, 1, 2}
    assert len(model.classes_) == 0
    assert "simclr" in model.history_[0]
    assert model.rounds_[-1]["nmi_train"] is None


def test_partial_labels_name_the_first_clusters() -> None:
    labels = np.where(np.arange(42) < 24, LABELS, -1)
    model = quick().fit(IMAGES, labels)
    np.testing.assert_array_equal(model.labels_[:24], LABELS[:24])


def test_wrong_combinations_are_refused(tmp_path: Path, fitted: DeepClustering) -> None:
    pairs = Pairs(IMAGES, LABELS)
    refused("the images bring their own", lambda: quick().fit(pairs, LABELS))
    refused("cannot be split", lambda: quick(test_fraction=0.5).fit(pairs))
    refused("must both bring their labels", lambda: quick().fit(pairs, test=(NEW, LABELS[:9])))
    refused("a int, but one per image", lambda: quick().fit(IMAGES, 5))
    refused("images: none were given", lambda: quick().fit(IMAGES[:0], LABELS[:0]))
    refused("class\n?.*indices", lambda: quick().fit(Pairs(IMAGES, list("abc") * 14)))
    mixed = [(IMAGES[0], 0), IMAGES[1]]
    refused("some images come with a label, others without", lambda: quick().fit(mixed))
    folder = write_folder(tmp_path / "images", 3)
    refused("leave `labels` out", lambda: quick(image_size=8).fit(folder, LABELS))
    refused("data.image_size: needed", lambda: quick().fit(folder))
    flat = tmp_path / "images" / "left"
    refused("1 training image: clustering compares", lambda: quick(image_size=8).fit(flat))
    refused("score: needs labels, because", lambda: fitted.score(NEW, None))
    refused("all of them are unknown", lambda: fitted.score(NEW, np.full(9, -1)))
    refused("8 for 9 images", lambda: fitted.score(NEW, LABELS[:8]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_clusters": 0}, "DeepClustering: clustering.num_clusters: input should be greater"),
        ({"gamma": "much"}, "DeepClustering: joint.gamma: "),
        ({"patch_size": 3}, "model.patch_size: 3 does not divide the image side 8"),
        ({"params": {"joint": {"gama": 1}}}, "params: unknown parameter joint.gama; did you mean"),
        ({"params": "nowhere.yaml"}, "nowhere.yaml: no such parameter file"),
        ({"num_clusters": 100}, "100 clusters cannot be made of 42 training images"),
        ({"random_state": -1}, "seed: "),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    refused(message, lambda: quick(**parameters).fit(IMAGES, LABELS))


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'clusters'"):
        DeepClustering(clusters=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="Invalid parameter 'clusters'"):
        toy().set_params(clusters=3)


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = (
        "import sys, vitdc\n"
        "assert 'DeepClustering' in dir(vitdc)\n"
        "print(sorted({'numpy', 'sklearn', 'torch', 'vitdc.estimator'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        vitdc.Nothing  # noqa: B018
