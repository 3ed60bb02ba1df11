"""Serving: the answers of `Predictor.predict`, whatever form an image comes in."""

from __future__ import annotations

import base64
import functools
import io
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import servers
import toys
from mlflow import MlflowClient
from PIL import Image

from vitdc.artifacts import Dataset
from vitdc.data.pixels import Pixels, decode
from vitdc.errors import InputError
from vitdc.prediction import Predictor
from vitdc.serving import COLUMNS, Service, decode_images
from vitdc.tracking.registry import Scores, register_model

RGB, GREY = Pixels(8, 3, 10_000), Pixels(8, 1, 10_000)


def as_file(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file with these pixels."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, kind, **options)
    return file.getvalue()


def as_text(image: np.ndarray) -> str:
    return base64.b64encode(as_file(image)).decode()


@pytest.fixture(scope="module")
def images(toy_run: toys.ToyRun) -> np.ndarray:
    return np.asarray(Dataset.load(toy_run.dataset).test.images)


@pytest.fixture(scope="module")
def predictor(toy_run: toys.ToyRun) -> Predictor:
    return Predictor.load(toy_run.results)


@pytest.fixture(scope="module")
def expected(images: np.ndarray, predictor: Predictor) -> pd.DataFrame:
    prediction = predictor.predict(images)
    return pd.DataFrame({name: getattr(prediction, name) for name in COLUMNS})


def assert_equal(rows: Any, expected: pd.DataFrame) -> None:
    """Equal clusters; distances to the digits that float32 keeps in batches of any size."""
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    pd.testing.assert_frame_equal(
        found, expected.reset_index(drop=True), check_dtype=False, rtol=1e-5, atol=1e-6
    )


# --- what stands for an image ------------------------------------------------------------------


def test_every_form_of_an_image_gets_the_same_answer(
    images: np.ndarray, predictor: Predictor, expected: pd.DataFrame
) -> None:
    forms = [
        as_file,
        as_text,
        lambda image: "data:image/png;base64," + as_text(image),
        lambda image: image,
        lambda image: image.tolist(),
        lambda image: image[..., 0].tolist(),  # (H, W)
        lambda image: image.astype(float).tolist(),
    ]
    service = Service(predictor)
    for form in forms:
        assert_equal(service.answer(form(image) for image in images), expected)
    mixed = [forms[i % len(forms)](image) for i, image in enumerate(images)]
    assert_equal(service.answer(mixed), expected)
    assert service.answer([]) == []


@pytest.mark.parametrize("pixels", [RGB, GREY])
def test_a_file_becomes_what_prepare_makes_of_it(pixels: Pixels) -> None:
    random = np.random.default_rng(0)
    colour = random.integers(0, 256, (30, 20, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    files = [
        as_file(colour, "JPEG", exif=turned),
        as_file(random.integers(0, 256, (9, 40, 4), dtype=np.uint8)),
        as_file(random.integers(0, 256, (8, 8), dtype=np.uint8), "GIF"),
        as_file(random.integers(0, 65536, (12, 12)).astype(np.uint16)),
    ]
    found = decode_images([base64.b64encode(file).decode() for file in files], pixels)
    np.testing.assert_array_equal(found, [decode(file, pixels) for file in files])


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (30, 20, 3), (9, 40, 4)])
@pytest.mark.parametrize("pixels", [RGB, GREY])
def test_pixels_become_what_a_file_with_them_becomes(
    shape: tuple[int, ...], pixels: Pixels
) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    file = decode(as_file(values), pixels)
    for form in (values, values.tolist(), values.astype(np.int64)):
        np.testing.assert_array_equal(decode_images([form], pixels), [file])


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (base64.b64encode(b"a text").decode(), "not an image of a known format"),
        ("an umlaut: \u00fc", "not the base64 text of an image file"),
        ("not base64!", "not the base64 text of an image file"),
        ("", "not an image of a known format"),
        (as_file(np.zeros((8, 8), np.uint8))[:40], "damaged: "),
        (as_file(np.zeros((101, 100), np.uint8)), "101 pixels exceed|100 x 101 pixels exceed"),
        (np.zeros((101, 100), np.uint8), "more than 10000 pixels"),
        (None, "neither .* nor nested lists of pixels, but nothing"),
        (float("nan"), "but of type float"),
        ({"b64": "x"}, "but of type dict"),
        ([[1, 2], [3]], "pixels in rows of different lengths"),
        ([[["a"]]], "pixels that are not numbers from 0 to 255"),
        ([[300] * 8] * 8, "pixels that are not numbers from 0 to 255"),
        ([[-1] * 8] * 8, "pixels that are not numbers from 0 to 255"),
        ([[float("nan")] * 8] * 8, "pixels that are not numbers from 0 to 255"),
        ([[0.5] * 8] * 8, "not whole numbers; 0 to 255 is expected, not 0 to 1"),
        ([[1] * 3] * 8, r"pixels of shape \(8, 3\); an image is \(height, width\) or"),
        ([], r"pixels of shape \(0,\)"),
        (np.zeros((8, 8, 2), np.uint8), r"pixels of shape \(8, 8, 2\)"),
    ],
)
def test_what_is_no_image_is_said(item: Any, reason: str) -> None:
    good = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match=f"^image 1: .*(?:{reason})"):
        decode_images([good, item, good], RGB)


def test_the_first_problems_of_many_are_named() -> None:
    with pytest.raises(InputError, match=r"^image 0: .*; image 1: .*; image 2: .*; and 7 more$"):
        decode_images([None] * 10, RGB)


def test_the_second_distance_of_one_cluster_is_none(
    images: np.ndarray, predictor: Predictor
) -> None:
    one = replace(predictor.clustering, centroids=predictor.clustering.centroids[:1])
    rows = Service(replace(predictor, clustering=one)).answer(images[:2])
    assert [(row["second_distance"], row["margin"]) for row in rows] == [(None, 1.0)] * 2


def test_a_model_of_images_that_are_not_square_is_refused(predictor: Predictor) -> None:
    checkpoint = replace(predictor.checkpoint, image_shape=(8, 9, 1))
    with pytest.raises(InputError, match="the model takes images of 8 x 9 pixels, and image files"):
        Service(replace(predictor, checkpoint=checkpoint))


def test_threads_that_ask_at_once_get_their_own_answers(
    images: np.ndarray, predictor: Predictor, expected: pd.DataFrame
) -> None:
    service = Service(predictor)
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda at: service.answer([images[at]])[0], [*range(12)] * 5)
        assert_equal(list(answers), pd.concat([expected] * 5))


# --- through MLflow ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(
    toy_run: toys.ToyRun, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """URI of an MLflow store with one registered model, and the folder of that model."""
    folder = tmp_path_factory.mktemp("models")
    uri = f"sqlite:///{shutil.copy(empty_store, folder / 'mlflow.db')}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("vitdc", artifact_location=str(folder / "mlartifacts"))
    run_id = client.create_run(experiment).info.run_id
    scores = Scores({"test": dict.fromkeys(("nmi", "ari", "acc")), "best_round": 2,
                     "stop_reason": "converged"}, "a" * 64)  # fmt: skip
    version = register_model(
        client, run_id, toy_run.results / "model", name="vitdc-toy", scores=scores
    )
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    return uri, Path(logged.artifact_location)


def test_the_registered_model_answers_as_the_predictor(
    model: tuple[str, Path], images: np.ndarray, expected: pd.DataFrame
) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    loaded = mlflow.pyfunc.load_model(str(model[1]), model_config={"num_threads": 1})
    for column in (list(images), [as_file(image) for image in images]):
        found = loaded.predict(pd.DataFrame({"image": column}))
        assert_equal(found, expected)
    assert_equal(loaded.predict({"image": [as_text(image) for image in images]}), expected)
    example = loaded.predict(loaded.input_example)
    assert len(example) == 1
    with pytest.raises(
        MlflowException, match=r"^image 0: not an image of a known format$"
    ) as caught:
        loaded.predict({"image": ["QUJD"]})
    assert caught.value.get_http_status_code() == 400


def test_a_row_is_one_image(model: tuple[str, Path], images: np.ndarray) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    loaded = mlflow.pyfunc.load_model(str(model[1]))
    text = as_text(images[0])
    assert len(loaded.predict(pd.DataFrame({"image": [[text, text]]}))) == 2  # MLflow's doing
    for wrong, shape in (([], 0), ([text, text], 2)):
        with pytest.raises(MlflowException, match=rf"^image 1: pixels of shape \({shape},\)"):
            loaded.predict(pd.DataFrame({"image": [text, wrong, text]}))


@pytest.fixture(scope="module")
def service(
    model: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory, warm_path: None
) -> Iterator[str]:
    """`mlflow models serve` on the registered model. Yields the address of its invocations."""
    port = servers.free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    command = ["mlflow", "models", "serve", "--model-uri", "models:/vitdc-toy/1"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    ready = functools.partial(servers.answers, f"{url}/ping")
    folder = tmp_path_factory.mktemp("service")
    env = os.environ | {"MLFLOW_TRACKING_URI": model[0]}
    with servers.Server(command, folder=folder, ready=ready, env=env):
        yield f"{url}/invocations"


def ask(url: str, request: Any, **options: Any) -> requests.Response:
    return requests.post(url, json=request, timeout=120, **options)


def test_every_request_gets_the_answers_of_the_predictor(
    service: str, images: np.ndarray, expected: pd.DataFrame
) -> None:
    texts, pixels = [as_text(image) for image in images], images.tolist()
    mixed = [texts[i] if i % 2 else pixels[i] for i in range(len(images))]
    for request in (
        *({"inputs": each} for each in (texts, pixels, mixed)),
        *({"inputs": {"image": each}} for each in (texts, pixels, mixed)),
        *({"instances": each} for each in (texts, pixels, mixed)),
        *({"instances": [{"image": i} for i in each]} for each in (texts, pixels)),
        *({"dataframe_records": [{"image": i} for i in each]} for each in (texts, pixels, mixed)),
        {"dataframe_split": {"columns": ["image"], "data": [[each] for each in mixed]}},
    ):
        response = ask(service, request)
        assert response.status_code == 200, response.text
        assert_equal(response.json()["predictions"], expected)


def test_what_is_no_image_is_refused_and_the_server_lives_on(
    service: str, images: np.ndarray, expected: pd.DataFrame
) -> None:
    good, text = as_text(images[0]), base64.b64encode(b"a text").decode()
    for request, message in (
        ({"inputs": [text]}, "image 0: not an image of a known format"),
        ({"inputs": [good, "what?"]}, "image 1: not the base64 text of an image file"),
        ({"inputs": [good, None]}, "image 1: neither the base64 text of an image file"),
        ({"inputs": images[0].tolist()}, "a batch is a list of images"),
        ({"inputs": [[[0.5] * 8] * 8]}, "not whole numbers"),
        ({"dataframe_records": [{"picture": good}]}, "Model is missing inputs ['image']"),
        ({"image": good}, "exactly one of the input fields"),
        ([good], "Received a list"),
    ):
        response = ask(service, request)
        assert response.status_code == 400, response.text
        assert message in response.json()["message"]
        if message.startswith("image"):
            assert response.json()["message"] == message or good not in response.text
    for data, kind, status in (
        (as_file(images[0]), "image/png", 415),
        (as_file(images[0]), "application/json", 400),
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
    ):
        headers = {"Content-Type": kind}
        assert requests.post(service, data=data, headers=headers, timeout=60).status_code == status
    assert_equal(ask(service, {"inputs": [good]}).json()["predictions"], expected[:1])


def test_no_request_of_many_at_once_is_lost_or_wrong(
    service: str, images: np.ndarray, expected: pd.DataFrame
) -> None:
    texts = [as_text(image) for image in images]

    def one(number: int) -> tuple[int, Any]:
        at = number % len(images)
        response = ask(service, {"inputs": [texts[at]]})
        return response.status_code, response.json()["predictions"][0]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(one, range(200)))
    assert [status for status, _ in answers] == [200] * 200
    order = [number % len(images) for number in range(200)]
    assert_equal([row for _, row in answers], expected.iloc[order])
