"""Images that DVC tracks, in real Git repositories."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from repositories import WEB_USER, Repository, served

from vitdc.artifacts import Dataset
from vitdc.config import DataConfig
from vitdc.data import write_dataset
from vitdc.errors import InputError
from vitdc.summary import describe

NAMES = tuple(f"c{index % 2}/{index}.png" for index in range(10))
FILES = ("index.csv", "train_images.npy", "test_images.npy", "train_labels.npy", "test_labels.npy")
ROOT = Path(__file__).parent.parent


def prepare(output: Path, repo: object, **options: object) -> Dataset:
    values = {"source": "dvc", "path": "data/images", "image_size": 8, "num_workers": 1, **options}
    config = DataConfig.parse({**values, "repo": repo and str(repo)}, where="test")
    write_dataset(config, output=output)
    return Dataset.load(output)


def refusal(output: Path, repo: object, **options: object) -> str:
    """The error message, after checking that it is one line and that nothing was written."""
    with pytest.raises(InputError) as caught:
        prepare(output, repo, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert not output.exists()
    return message


def contents(dataset: Dataset) -> list[bytes]:
    return [(dataset.path / name).read_bytes() for name in FILES]


@pytest.fixture
def images(write_images) -> Path:
    """A folder of ten images in two classes."""
    return write_images(*NAMES)


@pytest.fixture
def local(images, tmp_path) -> Dataset:
    """What `folder` makes of the same images."""
    config = DataConfig(source="folder", root=str(images), image_size=8, num_workers=1)
    write_dataset(config, output=tmp_path / "local")
    return Dataset.load(tmp_path / "local")


def test_tracked_folder_gives_the_same_content_as_the_folder(repository, images, local, tmp_path):
    repository.track(images)
    for repo in (repository.path, f"file://{repository.path}"):
        for path in ("data/images", "data/images/", "./data//images"):
            dataset = prepare(tmp_path / "out", repo, path=path)
            assert contents(dataset) == contents(local)
            assert dataset.content_hash == local.content_hash
            assert dataset.class_names == local.class_names == ("c0", "c1")


def test_labels_come_from_a_table_that_is_tracked_with_the_images(
    repository, write_images, tmp_path
):
    images = write_images("0.png", "1.png", "2.png")
    (images / "labels.csv").write_text("file,label\n0.png,a\n2.png,b\n")
    repository.track(images)
    options = {"test_fraction": 0}
    found = prepare(tmp_path / "out", repository.path, labels_file="./labels.csv", **options)
    assert found.class_names == ("a", "b")
    assert found.train.labels.tolist() == [0, -1, 1]
    message = refusal(tmp_path / "no", repository.path, labels_file="x.csv", **options)
    assert "x.csv: no such file at that commit" in message


def test_commit_and_content_hash_are_recorded(repository, images, tmp_path):
    commit = repository.track(images)
    dataset = prepare(tmp_path / "out", repository.path)
    tracked = (repository.path / "data/images.dvc").read_text()
    assert dataset.origin["commit"] == commit
    assert f"md5: {dataset.origin['content_hash']}\n" in tracked
    assert dataset.origin["path"] == "data/images"
    assert commit[:7] in describe(dataset)


def test_a_name_of_the_commit_and_the_place_of_the_repository_change_no_byte(
    repository, images, tmp_path
):
    commit = repository.track(images)
    repository.git("tag", "v1")
    before = (prepare(tmp_path / "out", repository.path).path / "artifact.json").read_bytes()
    moved = repository.path.rename(tmp_path / "moved")
    for repo, rev in ((moved, "v1"), (moved, commit[:10]), (f"file://{moved}", "main")):
        after = prepare(tmp_path / "out", repo, rev=rev).path / "artifact.json"
        assert after.read_bytes() == before
    assert str(tmp_path).encode() not in before


def test_a_repository_on_a_web_server_and_its_password(
    repository, images, local, tmp_path, monkeypatch
):
    monkeypatch.setenv("GIT_ASKPASS", "")
    commit = repository.track(images)
    with served(tmp_path) as host:
        for rev in (None, "main", commit):
            url = f"http://{WEB_USER}@{host}/repository/.git"
            dataset = prepare(tmp_path / "out", url, rev=rev)
            assert contents(dataset) == contents(local)
            assert dataset.origin["repo"] == f"http://{host}/repository/.git"
            assert dataset.origin["commit"] == commit
        assert b"sesame" not in (dataset.path / "artifact.json").read_bytes()
        for address in (f"tester:wrong@{host}", host):
            message = refusal(tmp_path / "none", f"http://{address}/repository/.git")
            assert "cannot be cloned (No valid credentials provided); check data.repo" in message
            assert "wrong" not in message


def test_any_revision_can_be_named(repository, write_images, tmp_path):
    first = repository.track(write_images("a.png", "b.png", folder="old"))
    repository.git("tag", "v1")
    repository.git("branch", "old")
    second = repository.track(write_images("a.png", "b.png", "c.png", folder="new"))
    for repo in (repository.path, f"file://{repository.path}"):
        found = {
            rev: prepare(tmp_path / "out", repo, rev=rev)
            for rev in (None, "main", second, "v1", "old", first, first[:8])
        }
        commits = {rev: dataset.origin["commit"] for rev, dataset in found.items()}
        assert commits == {
            **dict.fromkeys((None, "main", second), second),
            **dict.fromkeys(("v1", "old", first, first[:8]), first),
        }
        sizes = [len(found[rev].train) + len(found[rev].test) for rev in (None, "v1")]
        assert sizes == [3, 2]


def test_what_is_not_committed_is_not_read(repository, images, write_images, tmp_path):
    repository.track(images)
    before = contents(prepare(tmp_path / "out", repository.path))
    repository.add(write_images("c0/a.png", "c1/b.png", folder="uncommitted"))
    assert contents(prepare(tmp_path / "out", repository.path)) == before


def test_the_repository_of_the_working_directory_is_the_default(
    repository, images, local, tmp_path, monkeypatch
):
    repository.track(images)
    monkeypatch.chdir(repository.path / "data")
    assert contents(prepare(tmp_path / "out", None)) == contents(local)


def test_a_folder_inside_a_tracked_one_has_the_hash_that_dvc_would_give_it(
    repository, images, tmp_path
):
    repository.track(images)
    repository.track(images / "c0", path="alone")
    inside = prepare(tmp_path / "inside", repository.path, path="data/images/c0")
    alone = prepare(tmp_path / "alone", repository.path, path="alone")
    assert contents(inside) == contents(alone)
    assert inside.origin["content_hash"] == alone.origin["content_hash"]


def test_flat_folder_has_no_labels(repository, write_images, tmp_path):
    repository.track(write_images("a.png", "b.png"))
    dataset = prepare(tmp_path / "out", repository.path)
    assert dataset.class_names == ()
    assert dataset.train.labels.tolist() == [-1]


def test_a_project_in_a_folder_of_the_repository(repository, images, local, tmp_path):
    outer = tmp_path / "outer"
    subprocess.run(["git", "init", "-q", "-b", "main", outer], check=True)
    repository.track(images)
    shutil.copytree(repository.path, outer / "project", ignore=shutil.ignore_patterns(".git"))
    Repository(outer).commit("everything")
    dataset = prepare(tmp_path / "out", outer, path="project/data/images")
    assert contents(dataset) == contents(local)
    message = refusal(tmp_path / "none", outer)
    assert "no such path, and the repository's root has no .dvc" in message


def test_only_the_chosen_images_are_fetched(repository, images, tmp_path):
    repository.track(images)
    trial = prepare(tmp_path / "out", f"file://{repository.path}", max_train=2, max_test=1)
    chosen = [name for name, _ in trial.image_names()]
    assert len(chosen) == 3
    listing = json.loads(next((tmp_path / "remote").rglob("*.dir")).read_text())
    for file in listing:
        if file["relpath"] not in chosen:
            md5 = file["md5"]
            (tmp_path / "remote" / "files" / "md5" / md5[:2] / md5[2:]).unlink()
    again = prepare(tmp_path / "again", f"file://{repository.path}", max_train=2, max_test=1)
    assert contents(again) == contents(trial)


def test_nothing_is_left_behind(repository, images, tmp_path, monkeypatch):
    repository.track(images)
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    environment = dict(os.environ)
    prepare(tmp_path / "out", f"file://{repository.path}")
    refusal(tmp_path / "none", f"file://{repository.path}", path="nowhere")
    refusal(tmp_path / "none", f"file://{tmp_path}/nowhere")
    assert tempfile.gettempdir() == str(place)
    assert list(place.iterdir()) == []
    assert dict(os.environ) == environment


def test_a_user_without_a_name_will_do(repository, images, local, tmp_path, monkeypatch):
    repository.track(images)

    def nobody(uid: int):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert contents(prepare(tmp_path / "out", f"file://{repository.path}")) == contents(local)


def vitdc_prepare(
    output: Path, repo: object, path: str = "data/images"
) -> subprocess.CompletedProcess[str]:
    """The command, where there is neither `git` nor a home."""
    code = "from vitdc.cli import main; main()"
    options = (f"data.repo={repo}", f"data.path={path}", "data.image_size=8", "data.num_workers=1")
    overrides = [part for option in ("data.source=dvc", *options) for part in ("-S", option)]
    home = {"PATH": str(output.parent), "HOME": "/nonexistent", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, "prepare", "--output", str(output), *overrides],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=home,
    )


def test_neither_git_nor_a_home_is_needed_and_nothing_is_chattered(
    repository, images, local, tmp_path
):
    commit = repository.track(images)
    for repo in (repository.path, f"file://{repository.path}"):
        done = vitdc_prepare(tmp_path / "out", repo)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"dvc at {commit[:7]}: 8 training and 2 test images")
        assert contents(Dataset.load(tmp_path / "out")) == contents(local)
    done = vitdc_prepare(tmp_path / "out", repository.path, path="nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vitdc: nowhere in ")
    assert done.stderr.count("\n") == 1


# --- what can be wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"path": "data/nowhere"}, "no such path; check data.path and data.rev"),
        ({"path": "data"}, "not tracked by DVC; name a folder"),
        ({"path": "."}, "not tracked by DVC; name a folder"),
        ({"path": "../elsewhere"}, "no such path"),
        ({"path": "data/images/c0/0.png"}, "a single file; a folder of images is needed"),
        ({"path": "notes.txt"}, "not tracked by DVC"),
        ({"path": "planned"}, "DVC has no content of it at that commit; run the stage"),
        ({"rev": "nope"}, "at nope: unknown Git revision 'nope'; check data.rev"),
        ({"rev": "0" * 40}, "unknown Git revision"),
    ],
)
def test_what_is_not_in_the_repository(repository, images, tmp_path, options, complaint):
    (repository.path / "notes.txt").write_text("Git tracks this")
    stage = "stages: {plan: {cmd: 'true', outs: [planned]}}"
    (repository.path / "dvc.yaml").write_text(stage)
    repository.track(images)
    assert complaint in refusal(tmp_path / "out", repository.path, **options)
    assert complaint in refusal(tmp_path / "out", f"file://{repository.path}", **options)


def test_what_is_no_repository(tmp_path):
    place = tmp_path / "place"
    assert "No git repository was found" in refusal(tmp_path / "out", place)
    place.mkdir()
    message = refusal(tmp_path / "out", place)
    assert f"found at {place}; data.repo must be a Git repository" in message
    assert "cannot be cloned" in refusal(tmp_path / "out", f"file://{place}")
    subprocess.run(["git", "init", "-q", place], check=True)
    assert "unknown Git revision 'HEAD'" in refusal(tmp_path / "out", place)
    (place / "data").mkdir()
    (place / "data/images").write_text("")
    Repository(place).commit("no DVC")
    message = refusal(tmp_path / "out", place)
    assert "not tracked by DVC, and the repository's root has no .dvc" in message


def test_unreachable_repository_and_no_password_in_the_message(tmp_path):
    repo = "http://user:secret@127.0.0.1:9/images.git"  # the discard port, where nothing listens
    message = refusal(tmp_path / "out", repo)
    assert "cannot be cloned ([Errno 111] Connection refused); check data.repo" in message
    assert "secret" not in message


def test_data_that_was_never_pushed(repository, images, tmp_path):
    repository.add(images)
    repository.commit("not pushed")
    message = refusal(tmp_path / "out", f"file://{repository.path}")
    assert "neither in the DVC cache nor on the DVC remote; run `dvc push`" in message


def test_no_remote_at_all(images, tmp_path, repository):
    alone = Repository.make(tmp_path / "alone")
    alone.add(images)
    alone.commit("nowhere to push")
    assert len(prepare(tmp_path / "out", alone.path).train) == 8  # from the cache
    message = refusal(tmp_path / "none", f"file://{alone.path}")
    assert "neither in the DVC cache nor on the DVC remote; run `dvc push`" in message


def test_a_single_missing_file_is_named(repository, images, tmp_path):
    repository.track(images)
    shutil.rmtree(repository.cache)
    listing = json.loads(next((tmp_path / "remote").rglob("*.dir")).read_text())
    md5 = listing[3]["md5"]
    (tmp_path / "remote" / "files" / "md5" / md5[:2] / md5[2:]).unlink()
    message = refusal(tmp_path / "out", repository.path)
    assert f"{listing[3]['relpath']}: neither in the DVC cache nor on the DVC remote" in message


def test_unreadable_image_is_listed(repository, images, tmp_path):
    (images / "c0" / "bad.png").write_text("text")
    repository.track(images)
    message = refusal(tmp_path / "out", repository.path)
    assert message.startswith(f"data/images in {repository.path} at its last commit: unreadable")
    assert "c0/bad.png (not an image of a known format)" in message


def test_image_size_is_asked_for_before_anything_is_cloned(tmp_path):
    message = refusal(tmp_path / "out", "http://127.0.0.1:9/images.git", image_size=None)
    assert message.startswith("data.image_size: needed with data.source=dvc")


# --- on a real S3 server -------------------------------------------------------------------------


@pytest.fixture
def in_s3(s3_server, s3_credentials, repository, images, tmp_path) -> Repository:
    """A repository whose images are in a bucket, and nowhere else."""
    bucket = f"dvc-{tmp_path.name.replace('_', '-')}".lower()[:60]
    s3_server.client().create_bucket(Bucket=bucket)
    made = Repository.make(
        tmp_path / "in-s3", remote=f"s3://{bucket}/dvc", endpointurl=s3_server.endpoint_url
    )
    made.track(images)
    shutil.rmtree(made.cache)
    return made


def test_images_are_fetched_from_an_s3_remote(in_s3, local, tmp_path):
    for repo in (in_s3.path, f"file://{in_s3.path}"):
        assert contents(prepare(tmp_path / "out", repo)) == contents(local)
    assert not list(in_s3.cache.rglob("*.png"))


def test_wrong_and_missing_credentials(in_s3, tmp_path, monkeypatch):
    advice = "cannot be read from the DVC remote"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    message = refusal(tmp_path / "out", f"file://{in_s3.path}")
    assert advice in message
    assert "check your access" in message
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert advice in refusal(tmp_path / "out", f"file://{in_s3.path}")


def test_unreachable_remote(in_s3, tmp_path):
    with in_s3.dvc() as dvc, dvc.config.edit() as config:
        config["remote"]["storage"]["endpointurl"] = "http://127.0.0.1:9"
    in_s3.commit("lose the endpoint")
    start = time.monotonic()
    message = refusal(tmp_path / "out", f"file://{in_s3.path}")
    assert time.monotonic() - start < 60
    assert "cannot be read from the DVC remote" in message
    assert "http://127.0.0.1:9" in message


def test_object_that_is_gone_from_the_remote(s3_server, in_s3, tmp_path):
    with in_s3.dvc() as dvc:
        bucket, _, prefix = dvc.cloud.get_remote_odb().path.partition("/")
    client = s3_server.client()
    keys = [e["Key"] for e in client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]]
    client.delete_object(Bucket=bucket, Key=next(key for key in keys if not key.endswith(".dir")))
    message = refusal(tmp_path / "out", f"file://{in_s3.path}")
    assert ".png: neither in the DVC cache nor on the DVC remote; run `dvc push`" in message
