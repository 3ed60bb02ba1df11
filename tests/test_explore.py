"""`vitdc explore` without a browser: what it serves, to whom, and how it starts and ends."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import toys
import uvicorn
from PIL import Image
from toys import ToyRun

from vitdc import artifacts
from vitdc.artifacts import Dataset, Embeddings
from vitdc.artifacts.annotations import Annotations
from vitdc.errors import InputError
from vitdc.explore import layout, serving
from vitdc.explore.collection import Collection
from vitdc.explore.corrections import Corrections, OutdatedError, Patch
from vitdc.explore.finding import FinishedRun, find_run
from vitdc.explore.layout import MapMaker, Progress, lay_out
from vitdc.explore.server import create_app
from vitdc.explore.thumbnails import MAX_SIDE, Thumbnails
from vitdc.prediction import Predictor

ROOT = Path(__file__).parent.parent


@pytest.fixture
def output(toy_run: ToyRun, tmp_path: Path) -> Path:
    """The toy run as `vitdc run --output` lays it out, in a directory of its own."""
    for name in ("dataset", "rounds", "results"):
        shutil.copytree(getattr(toy_run, name), tmp_path / "run" / name)
    return tmp_path / "run"


@pytest.fixture
def run(output: Path) -> FinishedRun:
    return find_run(output / "results", dataset=None, rounds=None)


@pytest.fixture
def images(run: FinishedRun) -> Collection:
    return Collection(run)


class Page:
    """The server, in a thread, as its own page talks to it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"{self.address}/{path}", timeout=60, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        clustering = self.get("api/run").json()["clustering"]
        own = {"Origin": self.address, "Vitdc-Clustering": clustering}
        headers = {**own, **options.pop("headers", {})}
        return requests.post(f"{self.address}/{path}", timeout=60, headers=headers, **options)

    def array(self, path: str, dtype: type) -> np.ndarray:
        return np.frombuffer(self.get(path).content, dtype)

    def change(self, **patch: Any) -> dict[str, Any]:
        revision = self.get("api/annotations").json()["revision"]
        answer = self.post("api/annotations", json={"revision": revision, "patch": patch})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def table(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.get(f"export/{name}.csv").text)))


@pytest.fixture
def page(images: Collection, tmp_path: Path) -> Iterator[Page]:
    (tmp_path / "cache").mkdir()
    with serving.listen(0) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        app = create_app(images, cache=tmp_path / "cache", hosts={host})
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield Page(f"http://{host}")
        server.should_exit = True
        thread.join()


# --- finding what belongs to results --------------------------------------------------------------


def test_everything_is_found_beside_the_results_of_run(output: Path) -> None:
    run = find_run(output / "results", dataset=None, rounds=None)
    assert run.dataset.path == output / "dataset"
    assert [clustering.round for clustering in run.clusterings] == [0, 1, 2]
    assert run.embeddings.round == run.clustering.round == run.best_round


def test_everything_is_found_beside_the_results_of_dvc(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (output / "outputs").mkdir()
    for name in ("dataset", "rounds"):
        (output / name).rename(output / "outputs" / name)
    monkeypatch.chdir(output)
    assert len(find_run(Path("results"), dataset=None, rounds=None).clusterings) == 3


@pytest.mark.parametrize("name", ["dataset", "rounds"])
def test_what_is_not_beside_the_results_can_be_named(output: Path, name: str) -> None:
    moved = (output / name).rename(output / "elsewhere")
    paths = {"dataset": None, "rounds": None}
    with pytest.raises(InputError, match=f"--{name} DIR"):
        find_run(output / "results", **paths)
    find_run(output / "results", **{**paths, name: moved})


def test_images_that_the_results_were_not_made_from_are_refused(output: Path) -> None:
    artifacts.remove(output / "dataset")
    toys.write_toy_dataset(output / "dataset", unlabelled=1)
    with pytest.raises(InputError, match=r"is not what .* was made from.*--dataset"):
        find_run(output / "results", dataset=None, rounds=None)


def test_a_round_that_does_not_follow_from_the_one_before_is_refused(output: Path) -> None:
    artifacts.remove(output / "rounds" / "01" / "clustering")
    shutil.copytree(output / "rounds/02/clustering", output / "rounds/01/clustering")
    with pytest.raises(InputError, match="does not follow from the round before"):
        find_run(output / "results", dataset=None, rounds=None)


# --- what is served -------------------------------------------------------------------------------


def test_the_columns_are_those_of_clusters_csv(page: Page, output: Path) -> None:
    with (output / "results" / "clusters.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    described = page.get("api/run").json()
    assert described["num_images"] == len(rows)
    labels = [
        described["class_names"][label] for label in page.array("api/columns/label", np.int32)
    ]
    assert labels == [row["label"] for row in rows]
    clusters = page.array("api/columns/cluster", np.int32)
    assert clusters.tolist() == [int(row["cluster"]) for row in rows]
    distance = page.array("api/columns/distance", np.float32)
    np.testing.assert_allclose(distance, [float(row["distance"]) for row in rows], atol=1e-6)
    best = page.array(f"api/rounds/{described['best_round']}", np.int32)
    assert best.tolist() == clusters.tolist()


def test_unsure_is_what_predict_says(page: Page, images: Collection) -> None:
    predictor = Predictor.load(images.run.results)
    test = images.run.dataset.test.images
    limit = page.get("api/run").json()["unsure_limit"]
    atypicality = page.array("api/columns/atypicality", np.float32)
    unsure = predictor.predict(np.asarray(test)).unsure
    assert (atypicality[images.num_train :] > limit).tolist() == unsure.tolist()


def test_a_strip_shows_the_images_of_its_address_from_left_to_right(
    page: Page, images: Collection
) -> None:
    numbers = [50, 0, 41]
    answer = page.get(f"tiles/{page.get('api/run').json()['key']}/50,0,41")
    assert "immutable" in answer.headers["Cache-Control"]
    strip = np.asarray(Image.open(io.BytesIO(answer.content)))
    expected = np.concatenate([images.pixels(number)[:, :, 0] for number in numbers], axis=1)
    np.testing.assert_array_equal(strip, expected)


@pytest.mark.parametrize(
    "address", ["tiles/{}/1,54", "tiles/{}/-1", "images/{}/54", "api/images/54"]
)
def test_there_is_nothing_behind_the_last_image(page: Page, address: str) -> None:
    assert page.get(address.format(page.get("api/run").json()["key"])).status_code == 404


def test_large_images_are_shrunk_once_and_kept(run: FinishedRun, tmp_path: Path) -> None:
    dataset = Dataset.load(toys.write_toy_dataset(tmp_path / "large", side=2 * MAX_SIDE))
    images = Collection(replace(run, dataset=dataset))
    thumbnails = Thumbnails(images, tmp_path)
    first, kind = thumbnails.strip([3, 50])
    assert kind == "image/jpeg"
    assert Image.open(io.BytesIO(first)).size == (2 * MAX_SIDE, MAX_SIDE)
    made = np.load(tmp_path / f"thumbnails-{MAX_SIDE}-made.npy")
    assert np.flatnonzero(made).tolist() == [3, 50]
    assert Thumbnails(images, tmp_path).strip([3, 50])[0] == first
    kept = tmp_path / f"thumbnails-{MAX_SIDE}.npy"
    kept.write_bytes(kept.read_bytes()[:1000])  # as after a full disk
    assert Thumbnails(images, tmp_path).strip([3, 50])[0] == first


def test_an_image_tells_its_history_and_its_nearest_centroids(
    page: Page, images: Collection
) -> None:
    details = page.get("api/images/45").json()
    assert details["name"] == "test-3"
    assert details["history"] == [int(c.test.assignment[3]) for c in images.run.clusterings]
    cluster, distance = details["nearest"][0]
    assert cluster == images.cluster[45]
    assert distance == pytest.approx(float(images.distance[45]), abs=1e-5)


def test_a_head_that_was_trained_without_labels_names_no_class(run: FinishedRun) -> None:
    known = np.zeros_like(run.dataset.known)
    unlabelled = replace(run, dataset=replace(run.dataset, known=known))
    assert Collection(run).predicted(0) >= 0
    assert Collection(unlabelled).predicted(0) == -1


# --- search by example ----------------------------------------------------------------------------


def test_neighbours_are_the_nearest_embeddings(page: Page, run: FinishedRun) -> None:
    points = np.concatenate([run.embeddings.train.embedding, run.embeddings.test.embedding])
    distance = np.linalg.norm(points.astype(np.float64) - points[7], axis=1)
    distance[7] = np.inf
    found = page.get("api/images/7/neighbours").json()
    assert len(found["images"]) == len(points) - 1
    np.testing.assert_allclose(found["distances"], np.sort(distance)[:-1], atol=1e-3)
    np.testing.assert_allclose(distance[found["images"]], found["distances"], atol=1e-3)


def test_a_file_is_looked_up_as_predict_would(page: Page, images: Collection) -> None:
    file = io.BytesIO()
    Image.fromarray(images.pixels(48)[:, :, 0]).save(file, "PNG")
    found = page.post("api/look-up", data=file.getvalue()).json()
    assert found["cluster"] == images.cluster[48]
    assert found["distance"] == pytest.approx(float(images.distance[48]), abs=1e-4)
    assert found["distances"][0] == pytest.approx(0, abs=1e-2)
    assert found["picture"].startswith("data:image/png;base64,")


def test_a_file_that_is_no_image_is_refused_and_the_page_lives_on(page: Page) -> None:
    answer = page.post("api/look-up", data=b"once upon a time")
    assert answer.status_code == 422
    assert "not an image" in answer.json()["error"]
    assert page.get("api/run").status_code == 200


# --- the map --------------------------------------------------------------------------------------


def wait_for_map(page: Page) -> np.ndarray:
    deadline = time.monotonic() + 120
    while (answer := page.get("api/map")).status_code == 202:
        assert answer.json()["stage"]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, np.float32).reshape(-1, 2)


def test_the_map_comes_when_it_is_ready_and_is_kept(page: Page, tmp_path: Path) -> None:
    coordinates = wait_for_map(page)
    assert coordinates.shape == (54, 2)
    assert np.abs(coordinates).max() == pytest.approx(1)
    [kept] = (tmp_path / "cache").glob("map-*.npy")
    np.testing.assert_array_equal(np.load(kept), coordinates)


def test_a_map_that_cannot_be_kept_is_shown(page: Page, tmp_path: Path) -> None:
    (tmp_path / "cache").rmdir()
    assert wait_for_map(page).shape == (54, 2)


@pytest.mark.parametrize(
    "left",
    [lambda file: file.write_bytes(file.read_bytes()[:200]), lambda file: np.save(file, [1.0])],
    ids=["cut off", "of another shape"],
)
def test_what_is_left_of_a_map_is_made_anew(
    images: Collection, tmp_path: Path, left: Callable[[Path], object]
) -> None:
    expected = finished(MapMaker(images, tmp_path))
    [kept] = tmp_path.glob("map-*.npy")
    left(kept)
    np.testing.assert_array_equal(finished(MapMaker(images, tmp_path)), expected)
    np.testing.assert_array_equal(np.load(kept), expected)


def finished(maker: MapMaker) -> np.ndarray:
    deadline = time.monotonic() + 120
    while isinstance(found := maker.get(), Progress):
        assert not found.failed
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def three_blobs(run: FinishedRun) -> Embeddings:
    """Embeddings that lie where their label says, far from those of other labels."""
    splits = {}
    for name in artifacts.SPLITS:
        labels = run.dataset.split(name).labels
        noise = np.random.default_rng(len(name)).standard_normal((len(labels), 16))
        points = (20 * np.eye(16)[labels] + noise).astype(np.float32)
        splits[name] = replace(run.embeddings.split(name), embedding=points)
    return replace(run.embeddings, **splits)


def test_images_that_are_no_landmark_are_placed_among_their_neighbours(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "NUM_LANDMARKS", 30)
    images = Collection(replace(run, embeddings=three_blobs(run)))
    coordinates = lay_out(images, report=lambda stage: None)
    assert np.isfinite(coordinates).all()
    between = np.linalg.norm(coordinates[:, None] - coordinates, axis=2)
    np.fill_diagonal(between, np.inf)
    same = images.label[between.argmin(axis=1)] == images.label
    assert same.mean() > 0.9  # one in three by chance


# --- names, merges, marks -------------------------------------------------------------------------


def test_corrections_are_in_the_file_at_once(page: Page, output: Path) -> None:
    page.change(names={"1": " left  "}, merged={"2": 1}, wrong={"0": True, "45": True})
    found = Annotations.of_results(output / "results")
    assert found.names == {1: "left"}
    assert found.merged == {2: 1}
    assert found.wrong == ("test-3", "train-0")
    assert Annotations.path_for(output / "results").name == "results.annotations.json"


def test_every_change_comes_with_what_undoes_it(page: Page) -> None:
    before = page.change(names={"0": "first"}, wrong={"3": True})["state"]
    answer = page.change(
        names={"0": "second", "1": "new"}, merged={"1": 0}, wrong={"3": False, "4": True}
    )
    assert page.change(**answer["undo"])["state"] == before


def test_a_change_made_for_an_older_state_is_not_written(page: Page, output: Path) -> None:
    old = page.get("api/annotations").json()["revision"]
    page.change(names={"0": "by the other tab"})
    patch = {"revision": old, "patch": {"names": {"0": "by this tab"}}}
    answer = page.post("api/annotations", json=patch)
    assert answer.status_code == 409
    assert answer.json()["state"]["names"] == {"0": "by the other tab"}
    assert Annotations.of_results(output / "results").names == {0: "by the other tab"}


def test_of_many_changes_at_the_same_time_none_is_lost(page: Page) -> None:
    def insist(image: int) -> None:
        revision = page.get("api/annotations").json()["revision"]
        patch = {"wrong": {str(image): True}}
        while True:
            answer = page.post("api/annotations", json={"revision": revision, "patch": patch})
            if answer.status_code == 200:
                return
            revision = answer.json()["state"]["revision"]

    threads = [threading.Thread(target=insist, args=(image,)) for image in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert page.get("api/annotations").json()["wrong"] == list(range(8))


def make_anew(output: Path) -> None:
    """Results of another round lie where those that are shown lay."""
    made = output / "results" / "model" / "clustering"
    best = artifacts.Clustering.load(made).round
    artifacts.copy(output / "rounds" / f"{(best + 1) % 3:02}" / "clustering", made)


def test_names_do_not_wander_to_results_that_were_made_since(page: Page, output: Path) -> None:
    revision = page.get("api/annotations").json()["revision"]
    make_anew(output)
    change = {"revision": revision, "patch": {"names": {"0": "of the old clusters"}}}
    answer = page.post("api/annotations", json=change)
    assert answer.status_code == 422
    assert "made anew since; start vitdc explore again" in answer.json()["error"]
    assert not Annotations.path_for(output / "results").exists()


def test_a_model_made_since_does_not_judge_a_file(page: Page, output: Path) -> None:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    make_anew(output)
    answer = page.post("api/look-up", data=file.getvalue())
    assert answer.status_code == 422
    assert "made anew since" in answer.json()["error"]


@pytest.mark.parametrize(
    "address",
    ["api/annotations", "api/images/3/neighbours", "export/names.csv?clustering=another"],
)
def test_a_page_of_another_run_gets_nothing_of_this_one(page: Page, address: str) -> None:
    headers = {} if "?" in address else {"Vitdc-Clustering": "another"}
    answer = page.get(address, headers=headers)
    assert answer.status_code == 410
    assert "another run is served here now" in answer.json()["error"]
    assert answer.headers["Cache-Control"] == "no-cache"  # or a reload would find it again


@pytest.mark.parametrize("clustering", ["another", None])
def test_a_page_of_another_run_changes_nothing_of_this_one(
    page: Page, output: Path, clustering: str | None
) -> None:
    revision = page.get("api/annotations").json()["revision"]
    change = {"revision": revision, "patch": {"names": {"0": "of the other run"}}}
    headers = {"Vitdc-Clustering": clustering}
    assert page.post("api/annotations", json=change, headers=headers).status_code == 410
    assert not Annotations.path_for(output / "results").exists()


@pytest.mark.parametrize("address", ["tiles/another/1,2", "images/another/1"])
def test_pictures_are_not_kept_as_those_of_another_set(page: Page, address: str) -> None:
    answer = page.get(address)
    assert answer.status_code == 410
    assert "immutable" not in answer.headers["Cache-Control"]


def test_a_mark_is_not_looked_for_among_all_images(
    images: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.numbers(["of an image that is gone"])
    corrections = Corrections(images, cache=tmp_path)
    monkeypatch.setattr(images, "names", lambda: pytest.fail("went through all names"))
    revision = corrections.state().revision
    state, _ = corrections.apply(Patch(wrong={7: True, 50: True}), revision=revision)
    assert state.wrong == [7, 50]
    assert images.numbers(["of an image that is gone"]) == {}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"names": {"3": "x"}}, "no cluster 3"),
        ({"merged": {"0": 7}}, "no cluster 7"),
        ({"merged": {"0": 1, "1": 0}}, "circle"),
        ({"wrong": {"54": True}}, "no image 54"),
    ],
)
def test_a_change_of_what_does_not_exist_is_refused(
    page: Page, patch: dict[str, Any], message: str
) -> None:
    revision = page.get("api/annotations").json()["revision"]
    answer = page.post("api/annotations", json={"revision": revision, "patch": patch})
    assert answer.status_code == 422
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("address", "message"),
    [("api/images/abc", "number: Input should be a valid integer"), ("tiles/KEY/a,b", "a,b")],
)
def test_a_request_that_makes_no_sense_is_told_in_one_line(
    page: Page, address: str, message: str
) -> None:
    answer = page.get(address.replace("KEY", page.get("api/run").json()["key"]))
    assert answer.status_code == 422
    assert message in answer.json()["error"]


def test_too_many_marks_at_once_are_told_in_one_line(page: Page) -> None:
    patch = {"wrong": dict.fromkeys(map(str, range(100_001)), True)}
    answer = page.post("api/annotations", json={"revision": "", "patch": patch})
    assert answer.status_code == 422
    assert "at most 100000 items" in answer.json()["error"]


def test_of_two_programs_that_change_the_same_results_none_loses_anything(
    run: FinishedRun, output: Path, tmp_path: Path
) -> None:
    def mark(corrections: Corrections, numbers: range) -> None:
        for number in numbers:
            while True:
                revision = corrections.state().revision
                try:
                    corrections.apply(Patch(wrong={number: True}), revision=revision)
                    break
                except OutdatedError:
                    continue

    numbers = (range(0, 54, 2), range(1, 54, 2))
    with ThreadPoolExecutor() as pool:
        programs = [
            pool.submit(mark, Corrections(Collection(run), cache=tmp_path), each)
            for each in numbers
        ]
    for program in programs:
        program.result()
    assert len(Annotations.of_results(output / "results").wrong) == 54


def test_the_tables_hold_names_merges_and_marks(page: Page, images: Collection) -> None:
    page.change(names={"0": 'a "name", quoted'}, merged={"2": 0}, wrong={"5": True})
    names, assignments = page.table("names"), page.table("assignments")
    assert [row["name"] for row in names] == ['a "name", quoted', "", 'a "name", quoted']
    assert [row["merged_into"] for row in names] == ["", "", "0"]
    assert sum(int(row["size"]) for row in names) == len(images)
    assert sum(int(row["num_wrong"]) for row in names) == 1
    for row, cluster in zip(assignments, images.cluster, strict=True):
        assert row["cluster"] == str(cluster)
        assert row["merged_cluster"] == str({2: 0}.get(int(cluster), cluster))
        assert row["name"] == ("" if cluster == 1 else 'a "name", quoted')
    assert [row["image"] for row in assignments if row["wrong"] == "1"] == ["train-5"]


def test_purity_in_the_table_is_the_share_of_the_most_frequent_class(
    page: Page, images: Collection
) -> None:
    for row in page.table("names"):
        labels = images.label[images.cluster == int(row["cluster"])].tolist()
        most = max(set(labels), key=labels.count)
        assert float(row["purity"]) == pytest.approx(labels.count(most) / len(labels), abs=1e-6)
        assert labels.count(toys.CLASS_NAMES.index(row["majority_label"])) == labels.count(most)


# --- who may use it -------------------------------------------------------------------------------


def test_a_foreign_host_name_is_refused(page: Page) -> None:
    answer = page.get("api/run", headers={"Host": "attacker.example"})
    assert answer.status_code == 421
    assert "dataset" not in answer.text


@pytest.mark.parametrize("origin", ["http://attacker.example", "null", None])
def test_another_page_cannot_change_anything(page: Page, origin: str | None) -> None:
    revision = page.get("api/annotations").json()["revision"]
    body = {"revision": revision, "patch": {"names": {"0": "owned"}}}
    answer = requests.post(
        f"{page.address}/api/annotations", json=body, headers={"Origin": origin}, timeout=60
    )
    assert answer.status_code == 403
    assert page.get("api/annotations").json()["names"] == {}


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("name", ["api/run", "tiles/{}/1", "images/{}/1", "export/names.csv"])
def test_another_page_sees_nothing_of_the_run(page: Page, name: str, site: str) -> None:
    address = name.format(page.get("api/run").json()["key"])
    assert page.get(address, headers={"Sec-Fetch-Site": site}).status_code == 403
    for own in ("same-origin", "none"):
        assert page.get(address, headers={"Sec-Fetch-Site": own}).status_code == 200


def test_the_page_takes_everything_from_here(page: Page) -> None:
    answer = page.get("")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    for file in (ROOT / "vitdc" / "explore" / "static").rglob("*"):
        if file.suffix in (".html", ".js", ".css"):
            text = file.read_text()
            assert "https://" not in text, file
            assert "innerHTML" not in text, file


def test_a_wheel_has_the_page_in_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    static = ROOT / "vitdc" / "explore" / "static"
    files = {path.relative_to(ROOT).as_posix() for path in static.rglob("*") if path.is_file()}
    assert files <= set(zipfile.ZipFile(wheel).namelist())


# --- starting and ending --------------------------------------------------------------------------


@contextmanager
def explore(*arguments: object, cache: Path) -> Iterator[subprocess.Popen[str]]:
    """`vitdc explore` as a process, which does not outlive the block."""
    program = "from vitdc.cli import main; main()"
    command = ["python", "-c", program, "explore", "--no-open", *map(str, arguments)]
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def address_of(process: subprocess.Popen[str]) -> str:
    """Where the page is, when it is there."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert " at " in line, process.stderr.read()
    return line.split(" at ")[1].split()[0]


@pytest.mark.usefixtures("warm_path")
def test_it_says_its_address_in_one_line_and_ends_by_ctrl_c(output: Path, tmp_path: Path) -> None:
    with explore(output / "results", cache=tmp_path) as process:
        assert requests.get(address_of(process), timeout=60).status_code == 200
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (rest.strip(), errors) == ("", "")


@pytest.mark.usefixtures("warm_path")
def test_a_port_that_is_taken_is_refused_if_it_was_asked_for(output: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with explore(output / "results", "--port", port, cache=tmp_path) as process:
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"--port {port}: Address already in use" in errors
    assert len(errors.splitlines()) == 1


def test_without_a_port_a_free_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving.listen(0) as usual:
        monkeypatch.setattr(serving, "USUAL_PORT", usual.getsockname()[1])
        with serving.listen(None) as other:
            assert other.getsockname()[1] != usual.getsockname()[1]
            assert other.getsockname()[0] == "127.0.0.1"


def test_browsers_leave_out_the_usual_port() -> None:
    assert serving.hosts_of(8790) == {"127.0.0.1:8790", "localhost:8790"}
    assert {"127.0.0.1", "localhost"} < serving.hosts_of(80)


def break_version(results: Path) -> None:
    file = results / "artifact.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))


BAD_INPUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda results: (results / "artifact.json").unlink(), "no evaluation here"),
    "newer": (break_version, "format version 99"),
    "no images": (lambda results: (results.parent / "dataset").rename("moved"), "--dataset DIR"),
    "other clusters": (
        lambda results: Annotations(clustering="0" * 64).save(Annotations.path_for(results)),
        "belongs to other clusters",
    ),
    "no cache": (
        # a directory where not even root may make a file
        lambda results: (results.parent / "cache").symlink_to("/proc/self/fd"),
        "set XDG_CACHE_HOME",
    ),
    "damaged": (
        lambda results: (results.parent / "dataset" / "train_images.npy").write_bytes(b""),
        "corrupt",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_and_exit_code_2(
    output: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitdc import cli

    monkeypatch.chdir(output)
    monkeypatch.setenv("XDG_CACHE_HOME", str(output / "cache"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    spoil, message = BAD_INPUTS[case]
    spoil(output / "results")
    monkeypatch.setattr(sys, "argv", ["vitdc", "explore", "results", "--no-open"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_embeddings_are_read_in_blocks_in_order(images: Collection) -> None:
    blocks = list(images.embeddings(block=10))
    assert [first for first, _ in blocks] == [0, 10, 20, 30, 40, 42, 52]
    embeddings: Embeddings = images.run.embeddings
    expected = np.concatenate([embeddings.train.embedding, embeddings.test.embedding])
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), expected)
