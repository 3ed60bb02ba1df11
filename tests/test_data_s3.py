"""Images in a real S3 server."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdc.artifacts import Dataset
from vitdc.config import DataConfig
from vitdc.data import s3, write_dataset
from vitdc.errors import InputError

pytestmark = pytest.mark.usefixtures("s3_credentials")

PATIENCE = 60  # seconds, on a busy machine; requests that are repeated for long take minutes
NAMES = tuple(f"c{index % 3}/{index:03}.png" for index in range(80))


@pytest.fixture(scope="module")
def bucket(s3_server) -> str:
    s3_server.client().create_bucket(Bucket="photos")
    return "photos"


def upload(s3_server, bucket: str, folder: Path, prefix: str) -> None:
    client = s3_server.client()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            key = f"{prefix}{file.relative_to(folder).as_posix()}"
            client.put_object(Bucket=bucket, Key=key, Body=file.read_bytes())


def prepare(output: Path, **options: object) -> Dataset:
    values = {"image_size": 8, "num_workers": 2, **options}
    write_dataset(DataConfig.parse(values, where="test"), output=output)
    return Dataset.load(output)


def refusal(output: Path, **options: object) -> str:
    """The error message, after checking that it came soon, on one line, and left nothing."""
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        prepare(output, **options)
    assert time.monotonic() - start < PATIENCE
    message = str(caught.value)
    assert "\n" not in message
    assert not output.exists()
    return message


def test_uploaded_folder_gives_the_same_content_as_the_folder(
    s3_server, bucket, write_images, tmp_path
):
    root = write_images(*NAMES)
    (root / "c0" / "notes.txt").write_text("not an image")
    upload(s3_server, bucket, root, "a/b/")
    upload(s3_server, bucket, write_images("z.png", folder="other"), "a/bc/")  # not below a/b/
    local = prepare(tmp_path / "local", source="folder", root=str(root))
    for source in ("s3://photos/a/b", "s3://photos/a/b/"):
        remote = prepare(tmp_path / "remote", source=source, endpoint_url=s3_server.endpoint_url)
        assert remote.content_hash == local.content_hash
        assert remote.class_names == local.class_names
        for name in ("index.csv", "train_images.npy", "test_images.npy", "train_labels.npy"):
            assert (remote.path / name).read_bytes() == (local.path / name).read_bytes()


def test_labels_come_from_a_table_among_the_objects(s3_server, bucket, write_images, tmp_path):
    root = write_images("0.png", "1.png", "2.png")
    (root / "labels.csv").write_text("file,label\n0.png,a\n2.png,b\n")
    upload(s3_server, bucket, root, "flat/")
    options = {"endpoint_url": s3_server.endpoint_url, "test_fraction": 0}
    found = prepare(
        tmp_path / "out", source="s3://photos/flat", labels_file="labels.csv", **options
    )
    assert found.class_names == ("a", "b")
    assert found.train.labels.tolist() == [0, -1, 1]
    message = refusal(tmp_path / "no", source="s3://photos/flat", labels_file="x.csv", **options)
    assert message.startswith("data.labels_file: x.csv: no such object")


def test_listing_goes_on_after_the_first_page(s3_server, bucket, tmp_path):
    client = s3_server.client()
    with ThreadPoolExecutor(8) as executor:
        for index in range(1005):  # a page has 1,000
            pixels = np.random.default_rng(index).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
            body = content.getvalue()
            key = f"many/{index:04}.png"
            executor.submit(client.put_object, Bucket=bucket, Key=key, Body=body)
    url = s3_server.endpoint_url
    dataset = prepare(tmp_path / "out", source="s3://photos/many", endpoint_url=url, max_train=20)
    assert (len(dataset.train), len(dataset.test)) == (20, 201)


def test_unreadable_object_is_named(s3_server, bucket, write_images, tmp_path):
    root = write_images("good.png")
    (root / "bad.png").write_text("text")
    upload(s3_server, bucket, root, "broken/")
    url = s3_server.endpoint_url
    message = refusal(tmp_path / "out", source="s3://photos/broken", endpoint_url=url)
    assert "s3://photos/broken/: unreadable images: 1" in message
    assert "bad.png (not an image of a known format)" in message


def test_missing_bucket(s3_server, tmp_path):
    url = s3_server.endpoint_url
    message = refusal(tmp_path / "out", source="s3://nowhere/x", endpoint_url=url)
    assert message.startswith("s3://nowhere/x/: there is no such bucket")


def test_empty_prefix(s3_server, bucket, tmp_path):
    url = s3_server.endpoint_url
    message = refusal(tmp_path / "out", source="s3://photos/nothing", endpoint_url=url)
    assert message.startswith("s3://photos/nothing/: no images here")


def test_wrong_secret(s3_server, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    url = s3_server.endpoint_url
    message = refusal(tmp_path / "out", source="s3://photos/a", endpoint_url=url)
    assert "check your AWS credentials" in message
    assert "wrong" not in message.replace("is wrong", "")  # no secret in a message


def test_unknown_access_key(s3_server, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    url = s3_server.endpoint_url
    message = refusal(tmp_path / "out", source="s3://photos/a", endpoint_url=url)
    assert "check your AWS credentials" in message


def test_no_credentials(s3_server, bucket, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    url = s3_server.endpoint_url
    message = refusal(tmp_path / "out", source="s3://photos/a", endpoint_url=url)
    assert "no AWS credentials found; set AWS_ACCESS_KEY_ID" in message


def test_unreachable_endpoint(tmp_path):
    url = "http://127.0.0.1:9"  # the discard port, where nothing listens
    message = refusal(tmp_path / "out", source="s3://photos/a", endpoint_url=url)
    assert f"cannot reach {url}; check data.endpoint_url" in message


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"source": "s3://"}, "names no bucket"),
        ({"source": "s3://photos/a", "endpoint_url": "localhost"}, "Invalid endpoint"),
        ({"source": "s3://not a bucket/a"}, "Invalid bucket name"),
    ],
)
def test_mistyped_address(tmp_path, options, complaint):
    assert complaint in refusal(tmp_path / "out", **options)


def test_missing_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in refusal(tmp_path / "out", source="s3://photos/a")


@pytest.mark.parametrize(("wanted", "attempts"), [(None, None), ("8", 8)])
def test_requests_are_repeated_as_often_as_the_environment_says(monkeypatch, wanted, attempts):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", wanted or "")
    if wanted is None:
        monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    client = s3.Bucket.open("s3://photos/a", endpoint_url="http://127.0.0.1:9").client
    assert client.meta.config.retries.get("total_max_attempts") == attempts
