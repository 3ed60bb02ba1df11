"""The stock MLflow page in a real browser: three runs are compared, one is looked at."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from stack import MEMBER, Tracking, screenshot, start_vitdc, write_params

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

EXPERIMENT = "compare"
CHANGES = (  # what differs between the three runs
    ("joint.gamma=0.1", "seed=0"),
    ("joint.gamma=0.5", "seed=0"),
    ("joint.gamma=0.1", "seed=1"),
)
PATIENCE = 60  # seconds until the page has drawn what it was asked for
# the lines of all charts of the page, as their drawing library keeps them
LINES = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data
    .filter(line => line.type === 'scatter')
    .map(line => ({name: line.name, x: [...line.x], y: [...line.y]})))"""


class Recorded(NamedTuple):
    """Three real runs in one experiment."""

    experiment_id: int
    results: dict[str, Path]  # by the name of the run


@pytest.fixture(scope="module")
def recorded(tracking: Tracking, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Three runs of the command line, recorded at the same time."""
    processes = {}
    for changes in CHANGES:
        folder = tmp_path_factory.mktemp("run")
        write_params(folder)
        options = [f"-S{change}" for change in (*changes, f"tracking.experiment={EXPERIMENT}")]
        env = tracking.environment()
        processes[folder] = start_vitdc("run", "--output", ".", *options, folder=folder, env=env)
    for process in processes.values():
        _out, err = process.communicate()
        assert process.returncode == 0, err
    found = tracking.query(
        "SELECT experiment_id, runs.name, seed.value, gamma.value FROM runs"
        " JOIN experiments USING (experiment_id)"
        " JOIN params seed ON seed.run_uuid = runs.run_uuid AND seed.key = 'seed'"
        " JOIN params gamma ON gamma.run_uuid = runs.run_uuid AND gamma.key = 'joint.gamma'"
        " WHERE experiments.name = %s",
        EXPERIMENT,
    )
    names = {(f"joint.gamma={gamma}", f"seed={seed}"): name for _, name, seed, gamma in found}
    folders = dict(zip(CHANGES, processes, strict=True))
    results = {names[changes]: folder / "results" for changes, folder in folders.items()}
    return Recorded(found[0][0], results)


def curve(results: Path, metric: str) -> list[float]:
    with (results / "rounds.csv").open(newline="") as file:
        return [float(row[metric]) for row in csv.DictReader(file)]


def assert_curves(page: Page, recorded: Recorded, *metrics: str, picture: str) -> None:
    """The page draws the curve of every run and metric: by its name, against the round."""
    deadline = time.monotonic() + PATIENCE
    while (missing := missing_curves(page.evaluate(LINES), recorded, metrics)) and (
        time.monotonic() < deadline
    ):
        page.wait_for_timeout(200)
    page.wait_for_timeout(500)  # until the next frame is drawn
    screenshot(page, picture)
    assert not missing


def missing_curves(
    drawn: list[dict[str, Any]], recorded: Recorded, metrics: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Run and metric of every curve that is not among the lines."""
    wanted = {
        (name, metric): curve(results, metric)
        for name, results in recorded.results.items()
        for metric in metrics
    }
    return [
        (name, metric)
        for (name, metric), values in wanted.items()
        if {"name": name, "x": list(range(len(values))), "y": pytest.approx(values)} not in drawn
    ]


def find_in_table(page: Page, name: str, *, below: str) -> Locator:
    """A link in a table of the compare page, which draws only the rows that are in sight."""
    link, first = (page.get_by_role("link", name=each, exact=True) for each in (name, below))
    first.wait_for()
    first.scroll_into_view_if_needed()
    box = first.bounding_box()
    assert box
    page.mouse.move(page.viewport_size["width"] / 2, box["y"])  # the first column does not scroll
    deadline, steps = time.monotonic() + PATIENCE, 0
    while not link.count():
        assert time.monotonic() < deadline, f"no link {name}"
        # down, and up again: a slow page may draw the row when it is out of sight already
        page.mouse.wheel(0, 150 if steps // 60 % 2 == 0 else -150)
        page.wait_for_timeout(100)
        steps += 1
    return link


def test_three_runs_are_compared_from_the_list_of_runs(
    page: Page, recorded: Recorded, tracking: Tracking
) -> None:
    page.goto(f"{tracking.uri}/#/experiments/{recorded.experiment_id}/runs")
    for name in recorded.results:
        page.get_by_role("link", name=name).first.wait_for()
    for _ in recorded.results:
        page.get_by_label("toggle row selection (unchecked)").first.click()
    screenshot(page, "mlflow-runs")
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Comparing 3 Runs from 1 Experiment").wait_for()
    for name in recorded.results:
        page.get_by_text(name, exact=True).first.wait_for()
    screenshot(page, "mlflow-compare-table")
    find_in_table(page, "by_round/nmi_test", below="by_round/loss").press("Enter")
    assert_curves(page, recorded, "nmi_test", picture="mlflow-compare-nmi")


def test_the_charts_of_an_experiment_show_the_nmi_of_all_runs(
    page: Page, recorded: Recorded, tracking: Tracking
) -> None:
    page.goto(f"{tracking.uri}/#/experiments/{recorded.experiment_id}/runs?compareRunsMode=CHART")
    assert_curves(page, recorded, "nmi_test", "nmi_train", picture="mlflow-charts")


def test_a_run_shows_its_description_and_its_report(
    page: Page, recorded: Recorded, tracking: Tracking
) -> None:
    name, results = next(iter(recorded.results.items()))
    page.goto(f"{tracking.uri}/#/experiments/{recorded.experiment_id}/runs")
    page.get_by_role("link", name=name).first.click()
    page.get_by_role("heading", name=name).wait_for()
    page.get_by_text("nmi_test").first.wait_for()
    screenshot(page, "mlflow-run")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("report.html").first.click()
    report = page.frame_locator("iframe")
    report.get_by_role("heading", name="Deep clustering of digits").wait_for()
    nmi = json.loads((results / "metrics.json").read_text())["test"]["nmi"]
    report.get_by_text(f"{nmi:.3f}").first.wait_for()
    assert report.locator("img").first.evaluate("image => image.naturalWidth") > 0
    screenshot(page, "mlflow-report")


def test_without_a_password_the_page_shows_nothing(browser: Browser, tracking: Tracking) -> None:
    for password in (None, "wrong"):
        login = {"username": MEMBER.username, "password": password} if password else None
        context = browser.new_context(http_credentials=login)
        assert context.request.get(f"{tracking.uri}/").status == 401
        context.close()
