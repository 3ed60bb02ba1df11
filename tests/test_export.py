"""A model in another format says what the original says, and needs no vitdc."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from vitdc import DeepClustering, export
from vitdc.artifacts import Annotations
from vitdc.cli.export import FORMATS as CLI_FORMATS
from vitdc.data.pixels import Pixels, decode
from vitdc.errors import InputError, TrainingError
from vitdc.export import FORMATS, checking, export_model
from vitdc.prediction import Predictor
from vitdc.typicality import atypicality

DIGITS = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
LABELS = load_digits().target


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """A model of real digits, some of which it has not seen."""
    model = DeepClustering(params={**toys.SMALL_PARAMS, "data": {}})
    held_out = (DIGITS[300:500], LABELS[300:500])
    return model.fit(DIGITS[:300], LABELS[:300], test=held_out).predictor_


@pytest.fixture(scope="module")
def exported(
    predictor: Predictor, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The directory of the digits model in a format; only to be read."""
    made: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("export") / name
            export_model(predictor, format=name, output=made[name], images=DIGITS[500:])
        return made[name]

    return directory


def load(directory: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """(N, H, W, C) uint8 -> what the exported model says, by name; without the code of vitdc."""
    description = json.loads((directory / "preprocessing.json").read_text())
    file = directory / description["model"]
    if file.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        run = lambda x: dict(zip(names, session.run(None, {"images": x}), strict=True))  # noqa: E731
    elif file.suffix == ".pt2":
        import torch

        module = torch.export.load(file).module()
        run = lambda x: {k: v.detach().numpy() for k, v in module(torch.from_numpy(x)).items()}  # noqa: E731
    else:
        scope: dict[str, Any] = {"__name__": "recipe"}
        exec((directory / "predict.py").read_text(), scope)  # noqa: S102
        run = scope["load_safetensors"](file, description)
    return lambda images: run(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def expected(predictor: Predictor, images: np.ndarray) -> dict[str, np.ndarray]:
    """What the original says, with distances in float64."""
    embedding = predictor.embed(images)
    found = predictor.predict(images)
    difference = embedding[:, None].astype(float) - predictor.clustering.centroids
    return {
        "embedding": embedding,
        "cluster": found.cluster,
        "distances": np.sqrt((difference**2).sum(axis=2)),
        "atypicality": atypicality(
            predictor.clustering.typicality, embedding, images, found.cluster
        ),
    }


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("number", [1, 2, 5, 300])
def test_an_export_says_what_the_model_says_of_real_digits(
    predictor: Predictor, exported: Callable[[str], Path], name: str, number: int
) -> None:
    images = DIGITS[500 : 500 + number]
    found, original = load(exported(name))(images), expected(predictor, images)
    assert found.keys() == original.keys()
    np.testing.assert_array_equal(found["cluster"], original["cluster"])
    for key in ("embedding", "distances"):
        np.testing.assert_allclose(found[key], original[key], atol=1e-4)
    np.testing.assert_allclose(found["atypicality"], original["atypicality"], rtol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_clusters_of_a_manifold_are_exported_as_such(
    predictor: Predictor, tmp_path: Path, name: str
) -> None:
    found = predictor.clustering
    found = replace(found, config={**found.config, "space": "manifold"})
    of_manifold, images = replace(predictor, clustering=found), DIGITS[500:800]
    export_model(of_manifold, format=name, output=tmp_path / name, images=images)
    clusters = load(tmp_path / name)(images)["cluster"]
    np.testing.assert_array_equal(clusters, of_manifold.predict(images).cluster)
    assert (clusters != predictor.predict(images).cluster).any()


def test_what_is_beside_the_model_describes_it(
    predictor: Predictor, exported: Callable[[str], Path]
) -> None:
    found = json.loads((exported("pt2") / "preprocessing.json").read_text())
    image = {"layout": "NCHW", "dtype": "float32", "range": [0, 1], "colour": "greyscale"}
    size = {"height": 8, "width": 8, "channels": 1}
    assert found["input"].items() >= (image | size).items()
    np.testing.assert_array_equal(found["centroids"], predictor.clustering.centroids)
    mean = found["normalisation"]["mean"]
    assert mean == pytest.approx([DIGITS[:300].mean() / 255])
    assert found["unsure_beyond_atypicality"] == predictor.unsure_limit
    assert found["class_names"] == [str(digit) for digit in range(10)]
    assert {p.name for p in exported("pt2").iterdir()} == {
        "artifact.json",
        "model.pt2",
        "pixels.py",
        "predict.py",
        "preprocessing.json",
    }


def pictures(folder: Path) -> list[Path]:
    """Digits, alien images, and every kind of file that takes some care to read."""
    folder.mkdir()
    large = Image.fromarray(DIGITS[500, ..., 0]).resize((50, 40), Image.Resampling.BICUBIC)
    stripes = Image.fromarray(np.tile(np.array([[0, 255]], np.uint8), (8, 4)))
    clear = Image.merge("LA", [large, Image.new("L", large.size, 100)])
    deep = Image.fromarray(DIGITS[501, ..., 0].astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "digit.png": (Image.fromarray(DIGITS[502, ..., 0]), {}),
        "stripes.png": (stripes, {}),
        "large.jpg": (large.resize((500, 400)), {}),
        "colour.png": (large.convert("RGB").rotate(90), {}),
        "transparent.png": (clear, {}),
        "deep.png": (deep, {}),
        "turned.jpg": (large, {"exif": turned}),
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    return [folder / name for name in files]


@pytest.mark.usefixtures("warm_path")
@pytest.mark.parametrize("name", FORMATS)
def test_its_program_predicts_files_without_vitdc(
    predictor: Predictor, exported: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    files = pictures(tmp_path / "images")
    program = (
        "import runpy, sys\nsys.modules['vitdc'] = None\n"  # importing it is an error
        "sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"  # as Python does for a script
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = exported(name) / "predict.py"
    command = ["python", "-c", program, str(script), *map(str, files)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    found = predictor.predict(np.stack([decode(str(f), Pixels(8, 1, 10**6)) for f in files]))
    assert [row["image"] for row in rows] == [str(file) for file in files]
    assert [int(row["cluster"]) for row in rows] == found.cluster.tolist()
    assert [{"true": True, "false": False}[row["unsure"]] for row in rows] == found.unsure.tolist()
    assert found.unsure.any()
    assert not found.unsure.all()
    distances = [float(row["distance"]) for row in rows]
    np.testing.assert_allclose(distances, found.distance, atol=2e-4)


def test_its_program_quotes_every_name_that_needs_it(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {"__name__": "predict"}
    exec((Path(export.__file__).parent / "predict.py").read_text(), scope)  # noqa: S102
    csv.writer(scope["Lines"]()).writerows([["a\rb", 1], ["c\nd, e", 2], ["=f", 3]])
    assert capsys.readouterr().out == '"a\rb",1\n"c\nd, e",2\n=f,3\n'


@pytest.mark.usefixtures("warm_path")
def test_its_program_refuses_pixels_without_a_range(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "depth.tiff")
    command = ["python", exported("safetensors") / "predict.py", tmp_path / "depth.tiff"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "depth.tiff: of an unsupported kind: pixels of mode F (32 bits" in done.stderr


MODELS = {
    "the paper's": {"pooling": "token", "normalize": False},
    "on enlarged images": {"image_size": 12},
    "on reduced images": {"image_size": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_model_can_be_exported(model: str, name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shape = (8, 8, 1) if "image_size" in MODELS[model] else (4, 8, 3)
    images = random.integers(0, 256, (30, *shape), np.uint8)
    params = {**toys.SMALL_PARAMS, "data": {}, "clustering": {"num_clusters": 2}}
    params["model"] = {**toys.SMALL_PARAMS["model"], **MODELS[model]}  # type: ignore[dict-item]
    own = DeepClustering(params=params, epochs=1, max_rounds=1).fit(images, np.arange(30) % 2)
    done = export_model(own.predictor_, format=name, output=tmp_path / "out", images=images)
    assert done.difference is not None
    assert (done.difference.num_images, done.difference.largest < 1e-4) == (30, True)
    found, original = load(tmp_path / "out")(images), expected(own.predictor_, images)
    np.testing.assert_allclose(found["distances"], original["distances"], rtol=1e-4, atol=1e-4)


def test_an_export_that_says_something_else_is_not_written(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    centroids = predictor.clustering.centroids.copy()
    centroids[:, 0] += 1e-3
    other = replace(predictor.clustering, centroids=centroids)
    write = type(FORMATS["safetensors"]).write

    def write_another(self: Any, graph: Any, shape: Any, file: Path) -> None:
        write(self, export.ClusteringGraph(graph.model, other, shape), shape, file)

    monkeypatch.setattr(type(FORMATS["safetensors"]), "write", write_another)
    with pytest.raises(
        TrainingError, match=r"differs from the original by .*; nothing was written"
    ):
        export_model(predictor, format="safetensors", output=tmp_path / "out", images=DIGITS[:9])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("of_manifold", [False, True])
def test_not_a_number_is_a_difference(of_manifold: bool) -> None:
    outputs = checking.Outputs(*(np.ones((2, 2)), np.zeros(2, int), np.ones((2, 2)), np.ones(2)))
    wrong = outputs._replace(distances=np.full((2, 2), np.nan))
    with pytest.raises(TrainingError, match="differs"):
        checking._difference(outputs, wrong, is_of_manifold=of_manifold)


# --- the command -------------------------------------------------------------------------------


Vitdc = Callable[..., int]


def test_the_command_knows_the_formats() -> None:
    assert tuple(FORMATS) == CLI_FORMATS


def test_a_results_directory_is_exported_with_the_names_of_its_clusters(
    vitdc: Vitdc, toy_run: toys.ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").symlink_to(toy_run.results)
    annotations = Annotations.of_results(tmp_path / "results")
    named = annotations.model_copy(update={"names": {1: "lower left"}})
    named.save(Annotations.path_for(tmp_path / "results"))
    arguments = ["export", "results", "--format", "pt2", "--output", "out"]
    assert vitdc(*arguments, "--images", toy_run.dataset) == 0
    assert "checked on 42 of your images: the largest difference" in capsys.readouterr().out
    found = json.loads(Path("out/preprocessing.json").read_text())
    assert found["cluster_names"] == ["", "lower left", ""]
    assert vitdc(*arguments) == 0  # an export of ours is replaced
    assert "checked on 64 random images (--images" in capsys.readouterr().out
    names = ["--names", Annotations.path_for(Path("results"))]
    assert vitdc("export", "results/model", *arguments[2:-1], "other", *names) == 0
    assert toys.contents(Path("other")) == toys.contents(Path("out"))
    assert vitdc("export", "results/model", *arguments[2:-1], "other") == 0
    found = json.loads(Path("other/preprocessing.json").read_text())
    assert found["cluster_names"] == ["", "", ""]


def test_a_model_of_mlflow_is_exported(
    vitdc: Vitdc,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("params.yaml").write_text(yaml.safe_dump(toys.SMALL_PARAMS))
    assert vitdc("run", "--output", "run") == 0
    options = ["--format", "safetensors", "--output"]
    assert vitdc("export", "models:/vitdc-digits/1", *options, "registered") == 0
    assert vitdc("export", "run/results", *options, "local") == 0
    assert toys.contents(Path("registered")) == toys.contents(Path("local"))
    capsys.readouterr()
    assert vitdc("export", "models:/vitdc-letters/1", *options, "out") == 2
    assert "no registered model is called 'vitdc-letters'" in refused(capsys)


def test_a_folder_or_a_file_is_enough_to_check_with(
    vitdc: Vitdc, toy_run: toys.ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pictures(tmp_path / "images")
    arguments = ["export", toy_run.results, "--format", "safetensors", "--output", "out"]
    for images, number in ((tmp_path / "images", len(files)), (files[0], 1)):
        assert vitdc(*arguments, "--images", images) == 0
        assert f"checked on {number} of your images" in capsys.readouterr().out


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if packages were not installed."""
    from importlib.util import find_spec

    finding = lambda name: None if name in names else find_spec(name)  # noqa: E731
    monkeypatch.setattr("vitdc.export.formats.find_spec", finding)


def test_without_onnx_the_way_out_is_said(
    vitdc: Vitdc,
    toy_run: toys.ToyRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("onnxscript", "onnxruntime"):  # what writes it, and what checks it
        with monkeypatch.context() as patched:
            without(patched, name)
            assert vitdc("export", toy_run.results, "--format", "onnx", "--output", "out") == 2
        assert f"pip install {name}, or take --format pt2" in refused(capsys)
        assert not Path("out").exists()


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vitdc: ")
    assert err.count("\n") == 1
    return err


def test_no_file_checks_a_model_of_images_that_are_not_square(
    predictor: Predictor, tmp_path: Path
) -> None:
    wide = replace(predictor.checkpoint, image_shape=(4, 8, 3))
    files = pictures(tmp_path / "images")
    for images in (files[0], tmp_path / "images"):
        with pytest.raises(InputError, match="squares"):
            export.read_images(images, wide)


def wrong_places(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("precious")
    toys.write_toy_dataset(tmp_path / "larger", side=16)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("empty", {}, "empty: no model here"),
        ("nowhere", {}, "nowhere: no such directory"),
        (None, {"--output": "photos"}, "photos: exists and was not written by vitdc"),
        (None, {"--images": "empty"}, "empty: no images here"),
        (None, {"--images": "photos"}, "holiday.jpg is unreadable (not an image of a known"),
        (None, {"--images": "photos/holiday.jpg"}, "holiday.jpg: unreadable (not an image"),
        (None, {"--images": "nowhere"}, "nowhere: no such folder"),
        (None, {"--images": "larger"}, "holds images of shape (16, 16, 1), the model takes (8"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    vitdc: Vitdc,
    toy_run: toys.ToyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str | None,
    options: dict[str, str],
    message: str,
) -> None:
    wrong_places(tmp_path)
    options = {"--output": "out", **options}
    given = [part for option in options.items() for part in option]
    assert vitdc("export", model or toy_run.results, "--format", "pt2", *given) == 2
    assert message in refused(capsys)
    assert not Path("out").exists()
    assert (tmp_path / "photos" / "holiday.jpg").read_text() == "precious"


def test_torchscript_is_refused_with_what_there_is(
    vitdc: Vitdc, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vitdc("export", "results", "--format", "torchscript", "--output", "out") == 2
    assert "'onnx', 'pt2', 'safetensors'" in capsys.readouterr().err
    with pytest.raises(InputError, match="valid are onnx, pt2, safetensors"):
        export_model(None, format="torchscript", output=Path("out"))  # type: ignore[arg-type]
