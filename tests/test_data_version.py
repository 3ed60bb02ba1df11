"""What changes when the images behind a configuration do, and only then."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitdc.config import DataConfig
from vitdc.data.version import pin
from vitdc.errors import InputError

NAMES = ("c0/a.png", "c0/b.png", "c1/c.png")


def config(**options: object) -> DataConfig:
    return DataConfig.parse(options, where="test")


def folder(root: Path, **options: object) -> DataConfig:
    return config(source="folder", root=str(root), image_size=8, **options)


@pytest.mark.parametrize("source", ["digits", "CIFAR10", "FashionMNIST"])
def test_sets_by_name_never_change(source):
    given = config(source=source)
    assert pin(given) == (given, "")


def test_unknown_source_is_refused():
    with pytest.raises(InputError, match="unknown source 'imagenet'"):
        pin(config(source="imagenet"))


# --- folder --------------------------------------------------------------------------------------


def test_a_folder_has_its_version_wherever_it_lies_and_however_it_is_read(write_images, tmp_path):
    given = folder(write_images(*NAMES))
    before = pin(given)
    assert before.config == given
    moved = (tmp_path / "images").rename(tmp_path / "moved")
    assert pin(folder(moved, seed=3, max_train=2)).version == before.version
    link = tmp_path / "link"
    link.symlink_to(moved)
    assert pin(folder(link)).version == before.version


def test_changes_of_a_folder_change_its_version(write_images):
    root = write_images(*NAMES)
    versions = [pin(folder(root)).version]

    def changed() -> bool:
        versions.append(pin(folder(root)).version)
        return versions[-1] not in versions[:-1]

    write_images("c1/d.png")
    assert changed()
    (root / "c1/d.png").rename(root / "c1/e.png")
    assert changed()
    status = (root / "c0/a.png").stat()
    os.utime(root / "c0/a.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert changed()
    (root / "c0/b.png").unlink()
    assert changed()
    (root / "c0/b.png").symlink_to("gone.png")
    assert changed()


def test_files_that_are_no_images_do_not_count(write_images):
    root = write_images(*NAMES)
    before = pin(folder(root)).version
    (root / "notes.txt").write_text("none")
    (root / ".hidden.png").write_text("none")
    assert pin(folder(root)).version == before


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no images here"):
        pin(folder(tmp_path))


# --- DVC -----------------------------------------------------------------------------------------


def test_a_branch_becomes_its_commit_and_the_version_follows_the_content(repository, write_images):
    def pinned(rev: str | None, repo: str = str(repository.path)):
        return pin(config(source="dvc", repo=repo, rev=rev, path="data/images", image_size=8))

    first = repository.track(write_images(*NAMES))
    before = pinned("main")
    assert before.config.rev == first
    (repository.path / "README").write_text("the images stay as they are")
    second = repository.commit("another commit")
    after = pinned(None)
    assert after.config.rev == second != first
    assert after.version == before.version
    third = repository.track(write_images("c0/d.png"))
    grown = pinned("main")
    assert grown.config.rev == third
    assert grown.version != before.version
    assert pinned(first) == before
    assert pin(before.config) == before
    assert pinned(None, f"file://{repository.path}").version == grown.version


def test_nothing_of_the_data_is_read(repository, write_images, tmp_path):
    repository.track(write_images(*NAMES))
    shutil.rmtree(repository.cache)
    shutil.rmtree(tmp_path / "remote")
    given = config(source="dvc", repo=str(repository.path), path="data/images")
    assert pin(given).version.endswith(".dir")


# --- S3 ------------------------------------------------------------------------------------------


def test_changes_of_a_bucket_change_its_version(s3_server, s3_credentials):
    client = s3_server.client()
    client.create_bucket(Bucket="versions")
    given = config(source="s3://versions/a", endpoint_url=s3_server.endpoint_url, image_size=8)

    def put(key: str, content: bytes) -> str:
        client.put_object(Bucket="versions", Key=key, Body=content)
        return pin(given).version

    with pytest.raises(InputError, match="no images here"):
        pin(given)
    first = put("a/0.png", b"one")
    assert pin(given) == (given, first)
    assert put("a/0.png", b"one") == first
    assert put("a/notes.txt", b"no image") == first
    assert put("ab/0.png", b"of another prefix") == first
    second = put("a/0.png", b"two")  # as long as before
    third = put("a/1.png", b"one")
    assert len({first, second, third}) == 3
    client.delete_object(Bucket="versions", Key="a/1.png")
    assert pin(given).version == second


def test_torch_is_not_imported(write_images):
    code = (
        "import sys; from vitdc.config import DataConfig; from vitdc.data.version import pin;"
        "pin(DataConfig(source='folder', root=sys.argv[1], image_size=8));"
        "sys.exit(bool({'torch', 'dvc', 'boto3'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code, str(write_images(*NAMES))], cwd=root, check=True)
