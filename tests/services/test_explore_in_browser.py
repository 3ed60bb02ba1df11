"""Every feature of `vitdc explore` in headless Chromium, on a short run of the digits.

Screenshots are left in .ci/artifacts/explore/, light and dark, on a laptop's screen.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import toys
import yaml
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Playwright, Route, expect
from stack import CHROMIUM, SCREENSHOTS
from toys import ToyRun

from vitdc.artifacts.annotations import Annotations

pytestmark = pytest.mark.services

PICTURES = SCREENSHOTS / "explore"
OPTIONS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
LAPTOP = {"width": 1280, "height": 800}
PROGRAM = "from vitdc.cli import main; main()"

expect.set_options(timeout=60_000)

PICTURES_LOADED = """async () => {
    const addresses = new Set([...document.images].map((image) => image.src));
    for (const picture of document.querySelectorAll(".picture")) {
        const found = /url\\("(.*)"\\)/.exec(getComputedStyle(picture).backgroundImage);
        if (found) addresses.add(found[1]);
    }
    await Promise.all([...addresses].map((address) => {
        const image = new Image();
        image.src = address;
        return image.decode();
    }));
}"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the digits."""
    folder = tmp_path_factory.mktemp("explore")
    params = {
        **toys.SMALL_PARAMS,
        "clustering": {"num_clusters": 10, "num_restarts": 2},
        "tracking": {"enabled": False},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-c", PROGRAM, "run", "--output", "run"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "run"


@contextmanager
def explore(results: Path, *options: str) -> Iterator[str]:
    """Serve results; the address of the page, until the block ends."""
    command = [sys.executable, "-c", PROGRAM, "explore", str(results), "--no-open", *options]
    env = {**os.environ, "XDG_CACHE_HOME": str(results / "../cache"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # what is wrong it says on the standard error of the test
        assert " at " in line, "vitdc explore did not start"
        yield line.split(" at ")[1].split()[0]
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def address(output: Path) -> Iterator[str]:
    with explore(output / "results") as address:
        yield address


@pytest.fixture(scope="module")
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """Chromium that draws WebGL without a graphics card."""
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
    yield browser
    browser.close()


class Refusal(NamedTuple):
    """An answer of the server that a test expects.

    Attributes:
        status: HTTP status.
        path: Its address ends with this.
    """

    status: int
    path: str


OUTDATED = Refusal(409, "api/annotations")


@pytest.fixture
def open_page(chromium: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens a view in a browser of its own, or as a further tab of another page's.

    Whatever the page complains about fails the test, and so does every answer of the server that
    refuses something, except those that the test names.
    """
    complaints: list[str] = []
    contexts = []

    def open_view(
        view: str = "",
        *,
        scheme: str = "light",
        at: str = address,
        beside: Page | None = None,
        refusals: tuple[Refusal, ...] = (),
    ) -> Page:
        if beside is None:
            context = chromium.new_context(
                viewport=LAPTOP, color_scheme=scheme, accept_downloads=True
            )
            context.set_default_timeout(60_000)
            contexts.append(context)
        else:
            context = beside.context
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if "Policy" in m.text else None)
        page.on(
            "request",
            lambda r: None if r.url.startswith((at, "data:")) else complaints.append(r.url),
        )
        page.on(
            "response",
            lambda r: None if r.status < 400
            or any(r.status == each.status and r.url.endswith(each.path) for each in refusals)
            else complaints.append(f"{r.status} {r.url}"),
        )  # fmt: skip
        page.goto(f"{at}#{view}")
        page.wait_for_selector("body[data-ready=page]")
        return page

    yield open_view
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(autouse=True)
def no_corrections(output: Path) -> None:
    Annotations.path_for(output / "results").unlink(missing_ok=True)


def corrections(output: Path) -> Annotations:
    return Annotations.of_results(output / "results")


def shoot(page: Page, name: str) -> None:
    page.evaluate(PICTURES_LOADED)
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")


def give_name(page: Page, name: str) -> None:
    """Name the cluster that is shown."""
    page.locator("#name").fill(name)
    page.keyboard.press("Enter")


def tiles(page: Page) -> Locator:
    return page.locator(".view .grid .tile")


def captions(page: Page) -> list[float]:
    """The numbers under the images; there are some."""
    expect(tiles(page).first).to_be_visible()
    return [float(text) for text in page.locator(".view .grid .tile small").all_inner_texts()]


TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
PRESS_AT_ONCE = """(keys) => {
    for (const key of keys) {
        const [, ctrl, name] = /^(Control\\+)?(.+)$/.exec(key);
        const options = {key: name, ctrlKey: Boolean(ctrl), bubbles: true, cancelable: true};
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", options));
    }
}"""


def press_at_once(page: Page, *keys: str) -> None:
    """Press keys faster than the server can answer any of them."""
    page.evaluate(PRESS_AT_ONCE, list(keys))


def focus_images(page: Page) -> None:
    expect(tiles(page).first).to_be_visible()
    page.locator(".view .grid").focus()


# --- clusters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_clusters_at_a_glance(open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(scheme=scheme)
    expect(page.locator(".card")).to_have_count(10)
    expect(page.locator("#sidebar .entry")).to_have_count(10)
    expect(page.locator("#scores")).to_contain_text(re.compile(r"400 images.*purity \d"))
    shoot(page, f"clusters-{scheme}")


def test_a_cluster_is_shown_nearest_first_or_farthest_first(
    open_page: Callable[..., Page],
) -> None:
    page = open_page("clusters/3")
    expect(tiles(page).first).to_be_visible()
    nearest = captions(page)
    shoot(page, "cluster-light")
    page.get_by_role("button", name="Farthest first").click()
    farthest = captions(page)
    assert nearest == sorted(nearest)
    assert farthest == sorted(farthest, reverse=True)
    assert farthest[0] > nearest[0]
    expect(page.locator(".cluster-head")).to_contain_text(re.compile(r"\d+ images.*purity \d"))
    expect(page.locator(".confusion dt").first).to_be_visible()


def test_only_the_rows_in_sight_exist(open_page: Callable[..., Page]) -> None:
    page = open_page("outliers/far")
    expect(tiles(page).first).to_be_visible()
    assert tiles(page).count() < 300
    page.locator(".grid").focus()
    page.keyboard.press("End")
    expect(page.locator("#tile-399")).to_be_visible()
    assert page.locator("#tile-0").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_keyboard_goes_through_the_images_and_marks_them(
    open_page: Callable[..., Page], output: Path, scheme: str
) -> None:
    page = open_page("clusters/2", scheme=scheme)
    expect(tiles(page).first).to_be_visible()
    page.locator(".grid").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator(".grid")).to_have_attribute("aria-activedescendant", "tile-2")
    expect(page.locator(".tile[aria-selected=true]")).to_have_count(2)
    expect(page.locator(".selected")).to_have_text(re.compile("2 selected"))
    expect(page.locator("#inspector .pairs")).to_contain_text("distance")
    page.keyboard.press("w")
    expect(page.locator(".tile.wrong")).to_have_count(2)
    assert len(corrections(output).wrong) == 2
    shoot(page, f"marked-{scheme}")
    page.keyboard.press("Control+z")
    expect(page.locator(".tile.wrong")).to_have_count(0)
    assert corrections(output).wrong == ()


def test_keys_that_come_fast_are_done_one_after_another(
    open_page: Callable[..., Page], output: Path
) -> None:
    page = open_page("clusters/2")
    focus_images(page)
    press_at_once(page, "ArrowRight", "w", "ArrowRight", "w", "ArrowRight", "w")
    expect(page.locator(".tile.wrong")).to_have_count(3)
    press_at_once(page, "ArrowRight", "w", "w", "Control+z", "Control+z", "Control+z")
    expect(page.locator("#toasts")).to_contain_text("Undone: 1 image no longer marked")
    expect(page.locator(".tile.wrong")).to_have_count(2)
    assert len(corrections(output).wrong) == 2
    expect(page.locator(".toast.bad")).to_have_count(0)


def test_a_key_held_down_marks_once(open_page: Callable[..., Page], output: Path) -> None:
    page = open_page("clusters/2")
    focus_images(page)
    page.keyboard.down("w")
    page.keyboard.down("w")  # as a keyboard repeats it
    page.keyboard.up("w")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("w")
    expect(page.locator(".tile.wrong")).to_have_count(2)
    assert len(corrections(output).wrong) == 2


def test_undo_in_a_message_undoes_what_the_message_says(
    open_page: Callable[..., Page], output: Path
) -> None:
    page = open_page("clusters/3")
    give_name(page, "threes")
    expect(page.locator("#toasts")).to_contain_text("is called “threes”")
    focus_images(page)
    page.keyboard.press("w")
    expect(page.locator("#toasts")).to_contain_text("1 image marked wrong")
    page.locator(".toast", has_text="threes").get_by_role("button", name="Undo").click()
    expect(page.locator("#toasts")).to_contain_text("Undone: Cluster 3 is called")
    expect(page.locator("#name")).to_have_value("")
    assert corrections(output).names == {}
    assert len(corrections(output).wrong) == 1


def test_undo_does_not_take_away_what_another_tab_did_since(
    open_page: Callable[..., Page], output: Path
) -> None:
    one = open_page("clusters/0")
    other = open_page("clusters/0", beside=one)
    give_name(one, "first")
    expect(other.locator("#name")).to_have_value("first")
    give_name(other, "second")
    expect(one.locator("#name")).to_have_value("second")
    one.locator("body").press("Control+z")
    expect(one.locator(".toast.bad")).to_contain_text("Changed since, so it is not undone")
    assert corrections(output).names == {0: "second"}


def test_a_selection_says_how_large_it_is_and_ends_with_a_plain_move(
    open_page: Callable[..., Page],
) -> None:
    page = open_page("clusters/2")
    focus_images(page)
    selected = page.locator(".tile[aria-selected=true]")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator(".selected")).to_contain_text("3 selected")
    page.keyboard.press("Control+ArrowRight")
    page.keyboard.press("Space")
    expect(page.locator(".selected")).to_contain_text("4 selected")
    shoot(page, "selected-light")
    page.keyboard.press("ArrowRight")
    expect(selected).to_have_count(0)
    expect(page.locator(".selected")).to_be_hidden()
    tiles(page).nth(1).click(modifiers=["Control"])
    tiles(page).nth(3).click(modifiers=["Control"])
    expect(selected).to_have_count(2)
    tiles(page).nth(5).click()
    expect(selected).to_have_count(0)


def test_keys_are_about_the_image_that_is_shown_beside(
    open_page: Callable[..., Page], output: Path
) -> None:
    page = open_page("clusters/2")
    expect(tiles(page).first).to_be_visible()
    tiles(page).nth(2).click()
    shown = page.locator("#inspector h2")
    expect(shown).to_contain_text("digits/")
    page.keyboard.press("4")
    focus_images(page)
    page.keyboard.press("w")
    expect(page.locator("#inspector [data-key=mark]")).to_have_attribute("aria-pressed", "true")
    assert corrections(output).wrong == (shown.inner_text(),)


def test_the_focus_stays_where_it_is_when_something_is_corrected(
    open_page: Callable[..., Page], output: Path
) -> None:
    page = open_page("clusters/2")
    tiles(page).first.click()
    mark = page.locator("#inspector [data-key=mark]")
    for pressed in ("true", "false"):
        mark.press("Enter")
        expect(mark).to_have_attribute("aria-pressed", pressed)
        expect(mark).to_be_focused()
    order = page.locator("#sidebar select")
    order.focus()
    order.select_option("size")
    expect(order).to_be_focused()
    sizes = [int(text) for text in page.locator("#sidebar .number").all_inner_texts()]
    assert sizes == sorted(sizes, reverse=True)
    order.select_option("purity")
    purities = [int(text[:-1]) for text in page.locator("#sidebar .purity").all_inner_texts()]
    assert purities == sorted(purities)
    assert len(set(purities)) > 1


def test_a_name_half_typed_stays_when_another_tab_corrects_something(
    open_page: Callable[..., Page], output: Path
) -> None:
    one = open_page("clusters/4")
    other = open_page("clusters/4", beside=one)
    one.locator("#name").press_sequentially("the fo")
    focus_images(other)
    other.keyboard.press("w")
    expect(one.locator(".facts")).to_contain_text("1 marked wrong")
    one.keyboard.type("urs")
    one.keyboard.press("Enter")
    expect(one.locator("#toasts")).to_contain_text("the fours")
    assert corrections(output).names == {4: "the fours"}


def test_a_cluster_gets_a_name_by_the_keyboard_alone(
    open_page: Callable[..., Page], output: Path
) -> None:
    page = open_page()
    page.keyboard.press("]")
    page.keyboard.press("]")
    expect(page.locator("#name")).to_have_attribute("placeholder", "Cluster 1")
    page.keyboard.press("n")
    page.keyboard.type("the <b>ones</b>")
    page.keyboard.press("Enter")
    expect(page.locator("#sidebar .entry").nth(1)).to_contain_text("the <b>ones</b>")
    assert corrections(output).names == {1: "the <b>ones</b>"}


def test_clusters_are_merged_and_separated(open_page: Callable[..., Page], output: Path) -> None:
    page = open_page("clusters/4")
    page.get_by_role("button", name="Merge into").click()
    page.locator("#into").select_option("7")
    shoot(page, "merge-light")
    page.get_by_role("button", name="Merge", exact=True).click()
    expect(page).to_have_url(re.compile("#clusters/7"))
    expect(page.locator("#sidebar .entry")).to_have_count(9)
    assert corrections(output).merged == {4: 7}
    page.keyboard.press("Control+z")
    expect(page.locator("#sidebar .entry")).to_have_count(10)
    assert corrections(output).merged == {}
    page.get_by_role("button", name="Merge into").click()
    page.locator("#into").select_option("4")
    page.get_by_role("button", name="Merge", exact=True).click()
    expect(page).to_have_url(re.compile("#clusters/4"))
    page.get_by_role("button", name="Separate cluster 7 again").click()
    expect(page.locator("#sidebar .entry")).to_have_count(10)
    assert corrections(output).merged == {}


def test_two_tabs_lose_nothing_and_see_each_other(
    open_page: Callable[..., Page], output: Path
) -> None:
    one = open_page("clusters/0")
    other = open_page("clusters/1", beside=one)
    give_name(one, "from one")
    expect(other.locator("#sidebar")).to_contain_text("from one")
    give_name(other, "from the other")
    expect(one.locator("#sidebar")).to_contain_text("from the other")
    assert corrections(output).names == {0: "from one", 1: "from the other"}


def test_what_another_browser_changed_stays(open_page: Callable[..., Page], output: Path) -> None:
    one = open_page("clusters/0")
    other = open_page("clusters/1", refusals=(OUTDATED,))
    give_name(one, "from one")
    expect(one.locator("#toasts")).to_contain_text("from one")
    give_name(other, "from the other")
    expect(other.locator("#sidebar")).to_contain_text("from the other")
    expect(other.locator("#sidebar")).to_contain_text("from one")
    assert corrections(output).names == {0: "from one", 1: "from the other"}


def test_two_browsers_that_change_the_same_are_told(
    open_page: Callable[..., Page], output: Path
) -> None:
    one, other = open_page("clusters/0"), open_page("clusters/0", refusals=(OUTDATED,))
    give_name(one, "mine")
    expect(one.locator("#toasts")).to_contain_text("mine")
    give_name(other, "no, mine")
    expect(other.locator("#toasts")).to_contain_text("Another tab changed the same")
    assert corrections(output).names == {0: "mine"}


def test_names_and_assignments_are_exported(open_page: Callable[..., Page]) -> None:
    page = open_page("clusters/5")
    give_name(page, "fives")
    expect(page.locator("#toasts")).to_contain_text("fives")
    for name, rows in (("names", 10), ("assignments", 400)):
        page.locator(".menu summary").click()
        with page.expect_download() as downloading:
            page.get_by_role("link", name=f"{name}.csv").click()
        assert downloading.value.suggested_filename == f"{name}.csv"
        table = list(csv.DictReader(io.StringIO(downloading.value.path().read_text())))
        assert len(table) == rows
        assert {row["name"] for row in table if row["cluster"] == "5"} == {"fives"}


# --- the map --------------------------------------------------------------------------------------


class View(NamedTuple):
    """What part of the map is shown: its middle, in [-1, 1], and how much it is enlarged."""

    x: float
    y: float
    zoom: float


def points(page: Page) -> Locator:
    return page.locator("canvas.points")


def wait_for_map(page: Page) -> dict[str, float]:
    page.wait_for_selector(".view[data-ready=map]")
    box = points(page).bounding_box()
    assert box is not None
    return dict(box)


def seen(page: Page) -> str:
    """The part of the map that was drawn last, as the page says it."""
    return points(page).get_attribute("data-view") or ""


def moved(page: Page, before: str) -> View:
    """The part of the map that is drawn when it has changed and rests again."""
    expect(points(page)).not_to_have_attribute("data-view", before)
    page.evaluate(TWO_FRAMES)
    return View(*map(float, seen(page).split()))


def colored(page: Page) -> int:
    """How often the points got their colours."""
    return int(points(page).get_attribute("data-colors") or 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_map_shows_what_is_under_the_pointer(
    open_page: Callable[..., Page], scheme: str
) -> None:
    page = open_page("map/7", scheme=scheme)  # image 7 comes to the middle
    box = wait_for_map(page)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator(".tip")).to_contain_text("Cluster")
    expect(page.locator(".tip .picture")).to_be_visible()
    shoot(page, f"map-hover-{scheme}")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#inspector h2")).to_have_text(image_name(page, 7))
    before = seen(page)
    points(page).press("0")
    assert moved(page, before) == View(0, 0, 1)
    shoot(page, f"map-{scheme}")


def image_name(page: Page, number: int) -> str:
    address = f"api/images/{number}"
    return str(
        page.evaluate("async (address) => (await (await fetch(address)).json()).name", address)
    )


def test_the_map_moves_by_mouse_and_keyboard(open_page: Callable[..., Page]) -> None:
    page = open_page("map")
    box = wait_for_map(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    start, text = View(0, 0, 1), seen(page)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    zoomed, text = moved(page, text), seen(page)
    assert zoomed.zoom > start.zoom
    assert (zoomed.x, zoomed.y) == pytest.approx((0, 0), abs=1e-3)  # the pointer is in the middle
    page.mouse.down()
    page.mouse.move(x + 80, y + 30)
    page.mouse.up()
    dragged, text = moved(page, text), seen(page)
    unit = 0.47 * min(box["width"], box["height"]) * zoomed.zoom  # pixels
    assert dragged.x - zoomed.x == pytest.approx(-80 / unit, rel=0.05)
    assert dragged.y - zoomed.y == pytest.approx(30 / unit, rel=0.05)
    points(page).press("ArrowLeft")
    left = moved(page, text)
    assert left.x < dragged.x
    assert left.zoom == dragged.zoom


def test_only_the_first_button_drags_the_map(open_page: Callable[..., Page]) -> None:
    page = open_page("map")
    box = wait_for_map(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(button="right")
    page.mouse.move(x + 80, y + 30)
    page.mouse.up(button="right")
    before = seen(page)
    points(page).press("ArrowUp")  # something that is drawn after what must not be
    after = moved(page, before)
    assert after.x == 0
    assert after.y > 0


def test_the_map_is_used_without_a_mouse(open_page: Callable[..., Page], output: Path) -> None:
    page = open_page("map/7")
    wait_for_map(page)
    points(page).press("+")
    expect(page.locator(".tip")).to_contain_text("Cluster")
    shoot(page, "map-keyboard-light")
    points(page).press("Enter")
    expect(page.locator("#inspector h2")).to_have_text(image_name(page, 7))
    points(page).press("a")
    some = int(page.locator(".selection strong").inner_text().split()[0])
    assert 0 < some < 400
    points(page).press("Escape")
    expect(page.locator(".selection")).to_be_hidden()
    points(page).press("0")
    points(page).press("a")
    expect(page.locator(".selection")).to_contain_text("400 images of 10 clusters")


def test_showing_an_image_on_the_map_keeps_the_lasso(open_page: Callable[..., Page]) -> None:
    page = open_page("map/7")
    wait_for_map(page)
    points(page).press("a")
    expect(page.locator(".selection")).to_be_visible()
    number = page.locator(".selection strong").inner_text()
    tiles(page).first.click()
    expect(page.locator("#inspector h2")).to_be_visible()
    before = seen(page)
    page.keyboard.press("g")
    there = moved(page, before)
    expect(page).to_have_url(re.compile(r"#map/\d+$"))
    before = seen(page)
    points(page).press("ArrowRight")
    moved(page, before)
    before = seen(page)
    page.keyboard.press("g")
    back = moved(page, before)
    assert (back.x, back.y) == (there.x, there.y)
    assert page.locator(".selection strong").inner_text() == number


def test_the_lasso_chooses_what_it_surrounds(
    open_page: Callable[..., Page], address: str, output: Path
) -> None:
    page = open_page("map")
    box = wait_for_map(page)
    page.keyboard.press("l")
    left, right = box["x"] + 4, box["x"] + box["width"] - 4
    middle, bottom = box["y"] + box["height"] / 2, box["y"] + box["height"] - 1
    page.mouse.move(left, middle)
    page.mouse.down()
    for x, y in ((left, bottom), (right, bottom), (right, middle)):
        page.mouse.move(x, y, steps=5)
    page.mouse.up()
    expect(page.locator(".selection")).to_contain_text(re.compile(r"\d+ images of \d+ cluster"))
    number = int(page.locator(".selection strong").inner_text().split()[0])
    heights = np.frombuffer(page.request.get(f"{address}api/map").body(), np.float32)[1::2]
    unit = 0.47 * min(box["width"], box["height"])  # pixels; a point on the line may be in or out
    assert (heights * unit < -1).sum() <= number <= (heights * unit < 1).sum()
    shoot(page, "lasso-light")
    for _ in range(2):  # the second time there is nothing left to mark, and no mark is taken away
        with page.expect_response("**/api/annotations") as answer:
            page.get_by_role("button", name="Mark all wrong").click()
        assert len(answer.value.json()["state"]["wrong"]) == number
    assert len(corrections(output).wrong) == number


def test_the_sidebar_picks_out_a_cluster_on_the_map(open_page: Callable[..., Page]) -> None:
    page = open_page("map")
    wait_for_map(page)
    current = page.locator("#sidebar .entry[aria-current]")
    before = colored(page)
    page.locator("#sidebar .entry").nth(2).click()
    assert colored(page) == before + 1
    expect(current).to_contain_text("Cluster 2")
    size = int(current.locator(".number").inner_text())
    points(page).press("a")
    expect(page.locator(".selection")).to_contain_text(f"{size} images of 1 cluster")
    shoot(page, "map-one-cluster-light")


def test_a_cluster_picked_out_stays_so_when_something_is_corrected(
    open_page: Callable[..., Page],
) -> None:
    page = open_page("map")
    wait_for_map(page)
    other = open_page("clusters/2", beside=page)
    current = page.locator("#sidebar .entry[aria-current]")
    page.locator("#sidebar .entry").nth(2).click()
    expect(current).to_contain_text("Cluster 2")
    give_name(other, "twos")
    expect(current).to_contain_text("twos")
    other.get_by_role("button", name="Merge into").click()
    other.locator("#into").select_option("6")
    other.get_by_role("button", name="Merge", exact=True).click()
    expect(current).to_contain_text("Cluster 6")
    size = int(current.locator(".number").inner_text())
    points(page).press("a")
    expect(page.locator(".selection")).to_contain_text(f"{size} images of 1 cluster")


def test_a_mark_does_not_colour_the_map_anew(open_page: Callable[..., Page], output: Path) -> None:
    page = open_page("map/7")
    wait_for_map(page)
    points(page).press("Enter")
    expect(page.locator("#inspector h2")).to_be_visible()
    before = colored(page)
    page.keyboard.press("w")
    expect(page.locator("#inspector [data-key=mark]")).to_have_attribute("aria-pressed", "true")
    assert colored(page) == before
    page.get_by_role("button", name="Marked", exact=True).click()
    assert colored(page) == before + 1
    page.keyboard.press("Control+z")
    expect(points(page)).to_have_attribute("data-colors", str(before + 2))


def test_the_map_comes_back_when_the_graphics_card_was_lost(
    open_page: Callable[..., Page],
) -> None:
    page = open_page("map")
    wait_for_map(page)
    before = Image.open(io.BytesIO(points(page).screenshot()))
    times = colored(page)
    page.evaluate("""async () => {
        const canvas = document.querySelector("canvas.points");
        const card = canvas.getContext("webgl2").getExtension("WEBGL_lose_context");
        const lost = new Promise((done) => canvas.addEventListener("webglcontextlost", done));
        card.loseContext();
        await lost;
        setTimeout(() => card.restoreContext());
    }""")
    expect(points(page)).to_have_attribute("data-colors", str(times + 1))
    page.evaluate(TWO_FRAMES)
    after = Image.open(io.BytesIO(points(page).screenshot()))
    assert after.tobytes() == before.tobytes()


# --- moves, outliers, search ----------------------------------------------------------------------


def test_moves_say_from_where_to_where(open_page: Callable[..., Page]) -> None:
    page = open_page("moves")
    rounds = page.get_by_role("group", name="Rounds").get_by_role("button")
    values = rounds.evaluate_all("(buttons) => buttons.map((button) => button.dataset.value)")
    assert len(set(values)) == len(values) > 0
    expect(page.locator(".heading")).to_contain_text("changed cluster from round 0")
    page.get_by_role("button", name="0 → 1").click()
    expect(page.locator(".heading")).to_contain_text("from round 0 to round 1")
    flow = page.locator(".flow").last  # the smallest: all of it is in sight
    start, end = re.findall(r"Cluster (\d+)", flow.inner_text())
    number = int(flow.locator(".number").inner_text())
    flow.click()
    expect(tiles(page)).to_have_count(number)
    assert set(page.locator(".tile small").all_inner_texts()) == {f"{start} → {end}"}
    tiles(page).first.click()
    history = page.locator("#inspector .history li")
    expect(history.nth(0)).to_have_text(f"0{start}")  # the round, the cluster
    expect(history.nth(1)).to_have_text(f"1{end}")
    shoot(page, "moves-light")


def test_outliers_are_the_images_beyond_the_limit(open_page: Callable[..., Page]) -> None:
    page = open_page("outliers")
    expect(tiles(page).first).to_be_visible()
    times = [float(text.split()[0]) for text in page.locator(".tile small").all_inner_texts()]
    assert times == sorted(times, reverse=True)
    assert times[-1] >= 1
    shoot(page, "outliers-light")
    page.get_by_role("button", name="Other class").click()
    expect(page.locator(".tile.against").first).to_be_visible()
    page.get_by_role("button", name="Farthest").click()
    expect(page.locator(".found")).to_contain_text("the first 400 images")
    page.get_by_role("button", name="Marked wrong").click()
    expect(page.locator(".grid")).to_contain_text("No image is marked wrong")
    page.locator(".grid").press("Control+a")  # of nothing
    expect(page.locator(".selected")).to_be_hidden()
    shoot(page, "nothing-marked-light")


def test_taking_a_mark_away_keeps_the_place(open_page: Callable[..., Page], output: Path) -> None:
    page = open_page("outliers/far")
    focus_images(page)
    page.keyboard.press("Control+a")
    page.keyboard.press("w")
    expect(page.locator("#toasts")).to_contain_text("400 images marked wrong")
    page.get_by_role("button", name="Marked wrong").click()
    expect(page.locator(".found")).to_have_text("400 images")
    focus_images(page)
    page.keyboard.press("End")
    expect(page.locator("#inspector h2")).to_be_visible()  # makes the grid narrower
    page.evaluate(TWO_FRAMES)
    for _ in range(2):
        page.keyboard.press("PageUp")
    scrolled = page.locator(".grid").evaluate("(grid) => grid.scrollTop")
    cursor = page.locator(".grid").get_attribute("aria-activedescendant")
    assert scrolled > 0
    page.keyboard.press("w")
    expect(page.locator(".found")).to_contain_text("399 images")
    assert page.locator(".grid").evaluate("(grid) => grid.scrollTop") == scrolled
    assert page.locator(".grid").get_attribute("aria-activedescendant") == cursor


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_image_of_the_set_finds_those_like_it(
    open_page: Callable[..., Page], scheme: str
) -> None:
    page = open_page("clusters/6", scheme=scheme)
    expect(tiles(page).first).to_be_visible()
    page.locator(".grid").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("s")
    expect(page).to_have_url(re.compile(r"#search/\d+"))
    expect(page.locator(".query")).to_contain_text("Cluster 6")
    found = captions(page)
    assert len(found) > 10
    assert found == sorted(found)
    shoot(page, f"search-{scheme}")


def test_a_file_of_ones_own_finds_its_cluster(
    open_page: Callable[..., Page], tmp_path: Path
) -> None:
    Image.effect_noise((64, 64), 200).save(tmp_path / "noise.png")
    (tmp_path / "story.png").write_text("once upon a time")
    page = open_page("search", refusals=(Refusal(422, "api/look-up"),))
    page.set_input_files("#file", tmp_path / "noise.png")
    expect(page.locator(".query")).to_contain_text("noise.png")
    expect(page.locator(".query")).to_contain_text("margin")
    expect(tiles(page).first).to_be_visible()
    shoot(page, "look-up-light")
    page.set_input_files("#file", tmp_path / "story.png")
    expect(page.locator(".query")).to_contain_text("not an image")


@pytest.mark.parametrize("number", ["abc", "400", "-1", "1.5"])
@pytest.mark.parametrize("view", ["search", "map"])
def test_an_address_of_no_image_says_so(
    open_page: Callable[..., Page], view: str, number: str
) -> None:
    page = open_page(f"{view}/{number}")
    expect(page.locator("#main .empty")).to_have_text(
        f"There is no image {number}; the last is 399"
    )


DROP = """async (name) => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 16, height: 16});
    canvas.getContext("2d").fillRect(4, 4, 8, 8);
    const data = new DataTransfer();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve));
    data.items.add(new File([blob], name, {type: "image/png"}));
    window.dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
}"""


def test_a_file_can_be_dropped_anywhere(open_page: Callable[..., Page]) -> None:
    page = open_page("clusters/0")
    page.evaluate(DROP, "dropped.png")
    expect(page.locator(".query")).to_contain_text("dropped.png")
    expect(tiles(page).first).to_be_visible()


def test_of_two_files_the_last_is_shown_whichever_is_found_first(
    open_page: Callable[..., Page],
) -> None:
    page = open_page("search")
    held: list[Route] = []
    page.route("**/api/look-up", lambda r: r.continue_() if held else held.append(r))
    page.evaluate(DROP, "first.png")
    expect(page.locator(".query")).to_contain_text("Looking at first.png")
    page.evaluate(DROP, "second.png")
    expect(page.locator(".query")).to_contain_text("margin")
    with page.expect_response("**/api/look-up"):
        held[0].continue_()
    page.evaluate(TWO_FRAMES)
    expect(page.locator(".query .pairs")).to_contain_text("second.png")


# --- the frame ------------------------------------------------------------------------------------


def test_light_and_dark_follow_the_system_or_the_button(open_page: Callable[..., Page]) -> None:
    def background(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light, dark = open_page(scheme="light"), open_page(scheme="dark")
    assert background(light) != background(dark)
    dark.keyboard.press("t")
    assert background(light) == background(dark)
    dark.reload()
    dark.wait_for_selector("body[data-ready=page]")
    assert background(light) == background(dark)


def test_the_map_follows_the_system_from_light_to_dark(open_page: Callable[..., Page]) -> None:
    def paper(page: Page) -> tuple[int, ...]:
        page.evaluate(TWO_FRAMES)
        picture = Image.open(io.BytesIO(points(page).screenshot())).convert("RGB")
        return tuple(picture.getpixel((2, 2)))

    page = open_page("map")
    wait_for_map(page)
    assert paper(page) == (255, 255, 255)
    page.emulate_media(color_scheme="dark")
    assert paper(page) == (25, 29, 35)
    page.keyboard.press("t")  # from system to light
    assert paper(page) == (255, 255, 255)


def test_shortcuts_are_explained_and_reach_every_view(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("mark the selection wrong")
    shoot(page, "shortcuts-light")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    for key, view in enumerate(("clusters", "map", "moves", "outliers", "search"), start=1):
        page.keyboard.press(str(key))
        expect(page).to_have_url(re.compile(f"#{view}$"))
        expect(page.locator("#views [aria-current=page]")).to_have_count(1)
        expect(page.locator("#views [aria-current=page]")).to_have_attribute("href", f"#{view}")


def test_the_first_link_leads_to_the_images_of_the_view(open_page: Callable[..., Page]) -> None:
    page = open_page("clusters/3")
    expect(tiles(page).first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".grid")).to_be_focused()
    assert page.url.endswith("#clusters/3")


@pytest.mark.parametrize("keys", [("]", "["), (".", ",")])
def test_keys_go_from_cluster_to_cluster(
    open_page: Callable[..., Page], keys: tuple[str, str]
) -> None:
    page = open_page("clusters/3")
    forth, back = keys
    for key, cluster in ((forth, 4), (forth, 5), (back, 4)):
        page.keyboard.press(key)
        expect(page).to_have_url(re.compile(f"#clusters/{cluster}$"))


def test_brackets_behind_alt_gr_are_brackets(open_page: Callable[..., Page]) -> None:
    page = open_page("clusters/3")
    page.evaluate("""() => document.body.dispatchEvent(new KeyboardEvent("keydown", {
        key: "]", ctrlKey: true, altKey: true, modifierAltGraph: true, bubbles: true}))""")
    expect(page).to_have_url(re.compile("#clusters/4$"))


def test_focus_can_be_seen(open_page: Callable[..., Page]) -> None:
    page = open_page("clusters/0")
    expect(tiles(page).first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    for _ in range(60):
        page.keyboard.press("Tab")
        style = page.evaluate("""() => {
            const element = document.activeElement;
            const style = getComputedStyle(element);
            return [style.outlineStyle, style.boxShadow, element.className];
        }""")
        assert style[0] != "none" or style[1] != "none" or "name" in style[2], style
        if "grid" in style[2].split():
            return
    raise AssertionError("Tab does not reach the images")


def test_the_page_fits_a_narrow_window(open_page: Callable[..., Page]) -> None:
    page = open_page("clusters/0")
    page.set_viewport_size({"width": 900, "height": 700})
    expect(tiles(page).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 900
    shoot(page, "narrow-light")


# --- when something is wrong ----------------------------------------------------------------------


@pytest.fixture
def other_results(toy_run: ToyRun, tmp_path: Path) -> Path:
    """Results of another run, of other images."""
    for name in ("dataset", "rounds", "results"):
        shutil.copytree(getattr(toy_run, name), tmp_path / "other" / name)
    return tmp_path / "other" / "results"


def test_a_page_of_another_run_changes_nothing_and_says_so(
    open_page: Callable[..., Page], output: Path, other_results: Path
) -> None:
    refusals = (Refusal(410, "api/annotations"),)
    with explore(output / "results") as address:
        page = open_page("clusters/0", at=address, refusals=refusals)
        expect(tiles(page).first).to_be_visible()
    port = address.rstrip("/").rpartition(":")[2]
    with explore(other_results, "--port", port):
        give_name(page, "zeros")
        message = page.locator(".toast.bad")
        expect(message).to_contain_text("another run is served here now")
        assert not Annotations.path_for(other_results).exists()
        page.evaluate("window.dispatchEvent(new Event('focus'))")  # as when one comes back to it
        expect(page.locator("#sidebar .entry")).to_have_count(10)
        message.get_by_role("button", name="Reload").click()
        expect(page.locator("#sidebar .entry")).to_have_count(3)


def test_a_server_that_ended_is_told_of(open_page: Callable[..., Page], output: Path) -> None:
    with explore(output / "results") as address:
        page = open_page("clusters/0", at=address)
        focus_images(page)
    page.keyboard.press("w")
    expect(page.locator(".toast.bad")).to_contain_text("is it still running?")
    expect(page.locator(".tile.wrong")).to_have_count(0)


def test_annotations_that_were_damaged_meanwhile_are_told_of(
    open_page: Callable[..., Page], output: Path
) -> None:
    page = open_page("clusters/0", refusals=(Refusal(422, "api/annotations"),))
    focus_images(page)
    file = Annotations.path_for(output / "results")
    file.write_text("{")
    page.keyboard.press("w")
    expect(page.locator(".toast.bad")).to_contain_text("corrupt, it is not JSON")
    assert file.read_text() == "{"
    file.unlink()
    page.keyboard.press("w")
    expect(page.locator(".tile.wrong")).to_have_count(1)
