"""The same file gives the same pixels in training and wherever a model meets it later."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import toys
from PIL import Image

from vitdc import DeepClustering, export, loop, steps
from vitdc.artifacts import Checkpoint, Dataset
from vitdc.config import DataConfig
from vitdc.data.given import Target, open_given
from vitdc.data.pixels import Pixels, decode
from vitdc.inference import list_images, read_batches, wanted_pixels
from vitdc.prediction import Predictor
from vitdc.serving import Service, decode_images

UNUSUAL = {
    "fit": "pad",
    "background": "#204060",
    "pixel_range": (0, 4095),
    "pages": "all",
    "max_pixels": 2_000,
}


class Trained(NamedTuple):
    """A model of unusual files."""

    images: Path
    dataset: Dataset
    model: Path

    def by_name(self) -> dict[str, np.ndarray]:
        """Name -> (H, W, C) uint8, as it was trained on."""
        images = np.concatenate([self.dataset.train.images, self.dataset.test.images])
        return dict(zip((name for name, _ in self.dataset.image_names()), images, strict=True))


def write_unusual_images(root: Path) -> None:
    """Deep, transparent, wide, with several pages, and as large as is allowed."""
    root.mkdir()
    toy = toys.toy_images(np.arange(30) % 3, side=16)[..., 0]
    for number, values in enumerate(toy[:24]):
        image = Image.fromarray(values)
        match number % 4:
            case 0:
                deep = Image.fromarray(values.astype(np.uint16) * 16)
                deep.save(root / f"{number:02}.tif")
            case 1:
                clear = Image.merge("LA", (image, Image.fromarray(255 - values)))
                clear.save(root / f"{number:02}.png")
            case 2:
                image.resize((40, 16)).save(root / f"{number:02}.jpg")
            case _:
                image.resize((50, 40)).save(root / f"{number:02}.pgm")
    pages = [Image.fromarray(values) for values in toy[24:]]
    pages[0].save(root / "pages.tif", save_all=True, append_images=pages[1:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("same")
    write_unusual_images(root / "images")
    place = {"source": "folder", "root": str(root / "images"), "image_size": 8, "channels": 1}
    data = DataConfig.parse({**place, **UNUSUAL, "num_workers": 1}, where="test")
    shared = {"dataset": root / "dataset", "compute": toys.COMPUTE, "seed": 0}
    dataset = steps.prepare(data=data, output=root / "dataset")
    steps.pretrain(
        **shared, model=toys.MODEL, pretraining=toys.PRETRAINING, output=root / "pretrained"
    )
    loop.refine(
        **shared,
        checkpoint=root / "pretrained",
        clustering=toys.CLUSTERING.model_copy(update={"space": "embedding"}),
        joint=toys.JOINT,
        convergence=toys.CONVERGENCE.model_copy(update={"max_rounds": 1}),
        output=root / "rounds",
    )
    return Trained(root / "images", dataset, root / "rounds" / "01")


def test_every_page_is_an_image_and_those_of_a_file_stay_together(trained: Trained) -> None:
    splits = dict(trained.dataset.image_names())
    assert len(splits) == 24 + 6
    assert len({splits[f"pages.tif#{page}"] for page in range(1, 7)}) == 1


def test_a_model_keeps_how_its_files_were_read(trained: Trained) -> None:
    checkpoint = Checkpoint.load(trained.model / "checkpoint")  # of a retrained one
    found = wanted_pixels(checkpoint)
    assert {name: getattr(found, name) for name in UNUSUAL} == UNUSUAL | {"pixel_range": [0, 4095]}
    assert found == wanted_pixels(trained.dataset)


def test_predict_reads_them_as_the_training_did(trained: Trained) -> None:
    pixels = wanted_pixels(Checkpoint.load(trained.model / "checkpoint"))
    listings = list_images([str(trained.images)])
    (batch,) = read_batches(listings, pixels, batch_size=100, num_workers=1)
    assert batch.problems == []
    assert batch.num_files == 25
    expected = trained.by_name()
    names = [name.removeprefix(f"{trained.images}/") for name in batch.names]
    assert sorted(names) == sorted(expected)
    for name, image in zip(names, batch.images, strict=True):
        np.testing.assert_array_equal(image, expected[name])


def test_a_service_reads_them_as_the_training_did(trained: Trained) -> None:
    predictor, expected = Predictor.load(trained.model, toys.COMPUTE), trained.by_name()
    names = sorted(name for name in expected if "#" not in name)
    files = [(trained.images / name).read_bytes() for name in (*names, "pages.tif")]
    service = Service(predictor)
    images = [*(expected[name] for name in names), expected["pages.tif#1"]]
    np.testing.assert_array_equal(decode_images(files, service._pixels), images)
    answered = [row["cluster"] for row in service.answer(files)]
    assert answered == predictor.predict(np.stack(images)).cluster.tolist()


def test_an_estimator_reads_them_as_the_training_did(trained: Trained) -> None:
    loaded = DeepClustering.load(trained.model)
    found = np.concatenate(list(loaded._batches(str(trained.images))))
    expected = trained.by_name()
    np.testing.assert_array_equal(found, [expected[name] for name in sorted(expected)])


@pytest.fixture
def program(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An exported program, whose folder Python searches for modules."""
    predictor = Predictor.load(trained.model, toys.COMPUTE)
    export.export_model(predictor, format="safetensors", output=tmp_path / "out")
    monkeypatch.syspath_prepend(tmp_path / "out")
    yield tmp_path / "out" / "predict.py"
    sys.modules.pop("pixels", None)


def test_an_exported_program_reads_them_as_the_training_did(
    trained: Trained, program: Path
) -> None:
    read_images = runpy.run_path(str(program))["read_images"]
    spec = json.loads(program.with_name("preprocessing.json").read_text())["input"]
    assert spec["resize"].startswith("long side")
    for file in sorted(trained.images.iterdir()):
        pages = read_images(str(file), spec)
        names = [file.name] if len(pages) == 1 else [f"{file.name}#{n + 1}" for n in range(6)]
        for name, page in zip(names, pages, strict=True):
            image = trained.by_name()[name].transpose(2, 0, 1)
            np.testing.assert_array_equal(page, image.astype(np.float32) / 255)
    Image.new("L", (50, 41)).save(trained.images.parent / "larger.png")
    with pytest.raises(SystemExit, match=r"too large: 50 x 41 pixels exceed data.max_pixels=2000"):
        read_images(str(trained.images.parent / "larger.png"), spec)


def test_pixels_are_read_as_files_with_them(trained: Trained) -> None:
    pixels = Service(Predictor.load(trained.model, toys.COMPUTE))._pixels
    wide = np.arange(20 * 40 * 4, dtype=np.uint32).reshape(20, 40, 4).astype(np.uint8)
    Image.fromarray(wide).save(trained.images.parent / "wide.png")
    file = (trained.images.parent / "wide.png").read_bytes()
    np.testing.assert_array_equal(*decode_images([file, wide], pixels))


def test_images_handed_over_in_python_become_what_files_of_them_become(tmp_path: Path) -> None:
    config = DataConfig.parse({**UNUSUAL, "image_size": 8, "channels": 1}, where="test")
    random = np.random.default_rng(0)
    pictures = [
        Image.fromarray(random.integers(0, 256, (12, 30), np.uint8)),
        Image.fromarray(random.integers(0, 4096, (12, 30)).astype(np.uint16)),
        Image.fromarray(random.integers(0, 256, (12, 30, 4), np.uint8)),
    ]
    expected = []
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
        pixels = Pixels(8, 1, **config.decoding)
        expected.append(decode(str(tmp_path / f"{number}.png"), pixels))
    given = open_given(pictures, config)
    (chunk,) = given.chunks(10, Target.of(given.shape, config))
    np.testing.assert_array_equal(chunk.images, expected)
    stack = open_given(np.asarray(pictures[0])[None], config)
    (chunk,) = stack.chunks(10, Target.of(stack.shape, config))
    np.testing.assert_array_equal(chunk.images, expected[:1])


def test_older_models_read_files_with_the_defaults(trained: Trained) -> None:
    older = replace(Checkpoint.load(trained.model / "checkpoint"), decoding={})
    found = wanted_pixels(older)
    assert {name: getattr(found, name) for name in UNUSUAL} == DataConfig().decoding
