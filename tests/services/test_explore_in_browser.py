"""Every feature of `vitdc explore` in headless Chromium, on a short run of the digits.

Screenshots are left in .ci/artifacts/explore/, light and dark, on a laptop's screen.
"""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import toys
import yaml
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Playwright, expect

from vitdc.artifacts.annotations import Annotations

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / ".ci" / "artifacts" / "explore"
CHROMIUM = "/usr/bin/chromium"
OPTIONS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
LAPTOP = {"width": 1280, "height": 800}
PROGRAM = "from vitdc.cli import main; main()"

expect.set_options(timeout=60_000)

Shoot = Callable[[str], None]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the digits."""
    folder = tmp_path_factory.mktemp("explore")
    params = {**toys.SMALL_PARAMS, "tracking": {"enabled": False}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-c", PROGRAM, "run", "--output", "run"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture(scope="module")
def address(output: Path) -> Iterator[str]:
    command = [sys.executable, "-c", PROGRAM, "explore", str(output / "results"), "--no-open"]
    env = {**os.environ, "XDG_CACHE_HOME": str(output / "cache"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split(" at ")[1].split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """Chromium that draws WebGL without a graphics card."""
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
    yield browser
    browser.close()


@pytest.fixture
def open_page(chromium: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens a view in a browser of its own; whatever the page complains about fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_view(view: str = "", *, scheme: str = "light") -> Page:
        context = chromium.new_context(viewport=LAPTOP, color_scheme=scheme, accept_downloads=True)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if "Policy" in m.text else None)
        page.on(
            "request",
            lambda r: None if r.url.startswith((address, "data:", "blob:"))
            else complaints.append(r.url),
        )  # fmt: skip
        page.goto(f"{address}#{view}")
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
    page.wait_for_load_state("networkidle")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def tiles(page: Page) -> Locator:
    return page.locator(".view .grid .tile")


def captions(page: Page) -> list[float]:
    """The numbers under the images, once the grid has settled."""
    page.wait_for_load_state("networkidle")
    return [float(text) for text in page.locator(".view .grid .tile small").all_inner_texts()]


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
    page.get_by_role("button", name="Farthest first").click()
    farthest = captions(page)
    assert nearest == sorted(nearest)
    assert farthest == sorted(farthest, reverse=True)
    assert farthest[0] > nearest[0]
    expect(page.locator(".cluster-head")).to_contain_text(re.compile(r"\d+ images.*purity \d"))
    expect(page.locator(".confusion dt").first).to_be_visible()
    shoot(page, "cluster-light")


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
    expect(page.locator("#inspector .pairs")).to_contain_text("distance")
    page.keyboard.press("w")
    expect(page.locator(".tile.wrong")).to_have_count(2)
    assert len(corrections(output).wrong) == 2
    shoot(page, f"marked-{scheme}")
    page.keyboard.press("Control+z")
    expect(page.locator(".tile.wrong")).to_have_count(0)
    assert corrections(output).wrong == ()


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
    page.get_by_role("button", name="Separate cluster 4 again").click()
    expect(page.locator("#sidebar .entry")).to_have_count(10)
    assert corrections(output).merged == {}


def test_two_tabs_lose_nothing_and_see_each_other(
    open_page: Callable[..., Page], output: Path
) -> None:
    one, other = open_page("clusters/0"), open_page("clusters/1")
    one.locator("#name").fill("from one")
    one.keyboard.press("Enter")
    expect(one.locator("#toasts")).to_contain_text("from one")
    other.locator("#name").fill("from the other")
    other.keyboard.press("Enter")
    expect(other.locator("#sidebar")).to_contain_text("from one")
    expect(other.locator("#sidebar")).to_contain_text("from the other")
    assert corrections(output).names == {0: "from one", 1: "from the other"}


def test_two_tabs_that_change_the_same_are_told(
    open_page: Callable[..., Page], output: Path
) -> None:
    one, other = open_page("clusters/0"), open_page("clusters/0")
    one.locator("#name").fill("mine")
    one.keyboard.press("Enter")
    expect(one.locator("#toasts")).to_contain_text("mine")
    other.locator("#name").fill("no, mine")
    other.keyboard.press("Enter")
    expect(other.locator("#toasts")).to_contain_text("Another tab changed the same")
    assert corrections(output).names == {0: "mine"}


def test_names_and_assignments_are_exported(open_page: Callable[..., Page]) -> None:
    page = open_page("clusters/5")
    page.locator("#name").fill("fives")
    page.keyboard.press("Enter")
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


def wait_for_map(page: Page) -> dict[str, float]:
    page.wait_for_selector(".view[data-ready=map]")
    box = page.locator("canvas.points").bounding_box()
    assert box is not None
    return dict(box)


def drawn(page: Page) -> bytes:
    return page.locator("canvas.points").screenshot()


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
    expect(page.locator("#inspector h2")).to_contain_text("digits/")
    page.locator("canvas.points").focus()
    page.keyboard.press("0")
    page.wait_for_timeout(300)
    shoot(page, f"map-{scheme}")


def test_the_map_moves_by_mouse_and_keyboard(open_page: Callable[..., Page]) -> None:
    page = open_page("map")
    box = wait_for_map(page)
    page.wait_for_timeout(300)
    seen = {drawn(page)}
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(300)
    seen.add(drawn(page))
    page.mouse.down()
    page.mouse.move(x + 80, y + 30, steps=4)
    page.mouse.up()
    page.wait_for_timeout(300)
    seen.add(drawn(page))
    page.locator("canvas.points").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(300)
    seen.add(drawn(page))
    assert len(seen) == 4


def test_the_lasso_chooses_what_it_surrounds(open_page: Callable[..., Page], output: Path) -> None:
    page = open_page("map")
    box = wait_for_map(page)
    page.keyboard.press("l")
    left, top = box["x"] + 4, box["y"] + 60
    right, bottom = box["x"] + box["width"] - 4, box["y"] + box["height"] - 4
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 2)):
        page.mouse.move(x, y, steps=5)
    page.mouse.up()
    expect(page.locator(".selection")).to_contain_text(re.compile(r"\d+ images of 10 clusters"))
    number = int(page.locator(".selection strong").inner_text().split()[0])
    assert number > 300
    shoot(page, "lasso-light")
    page.get_by_role("button", name="Mark all wrong").click()
    expect(page.locator("#toasts")).to_contain_text("marked wrong")
    assert len(corrections(output).wrong) == number


def test_the_sidebar_picks_out_a_cluster_on_the_map(open_page: Callable[..., Page]) -> None:
    page = open_page("map")
    wait_for_map(page)
    page.wait_for_timeout(300)
    before = drawn(page)
    page.locator("#sidebar .entry").nth(2).click()
    page.wait_for_timeout(300)
    assert drawn(page) != before
    expect(page.locator("#sidebar .entry[aria-current]")).to_have_count(1)


# --- moves, outliers, search ----------------------------------------------------------------------


def test_moves_say_from_where_to_where(open_page: Callable[..., Page]) -> None:
    page = open_page("moves")
    expect(page.locator(".heading")).to_contain_text("changed cluster from round 0")
    page.get_by_role("button", name="0 → 1").click()
    expect(page.locator(".heading")).to_contain_text("from round 0 to round 1")
    flow = page.locator(".flow").nth(1)
    start, end = re.findall(r"Cluster (\d+)", flow.inner_text())
    number = int(flow.locator(".number").inner_text())
    flow.click()
    expect(tiles(page)).to_have_count(number)
    assert set(page.locator(".tile small").all_inner_texts()) == {f"{start} → {end}"}
    tiles(page).first.click()
    history = page.locator("#inspector .history li")
    expect(history.nth(0)).to_contain_text(start)
    expect(history.nth(1)).to_contain_text(end)
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
    assert found == sorted(found)
    shoot(page, f"search-{scheme}")


def test_a_file_of_ones_own_finds_its_cluster(
    open_page: Callable[..., Page], tmp_path: Path
) -> None:
    Image.effect_noise((64, 64), 200).save(tmp_path / "noise.png")
    (tmp_path / "story.png").write_text("once upon a time")
    page = open_page("search")
    page.set_input_files("#file", tmp_path / "noise.png")
    expect(page.locator(".query")).to_contain_text("noise.png")
    expect(page.locator(".query")).to_contain_text("margin")
    expect(tiles(page).first).to_be_visible()
    shoot(page, "look-up-light")
    page.set_input_files("#file", tmp_path / "story.png")
    expect(page.locator(".query")).to_contain_text("not an image")


def test_a_file_can_be_dropped_anywhere(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page("clusters/0")
    page.evaluate("""async () => {
        const canvas = Object.assign(document.createElement("canvas"), {width: 16, height: 16});
        canvas.getContext("2d").fillRect(4, 4, 8, 8);
        const data = new DataTransfer();
        const blob = await new Promise((resolve) => canvas.toBlob(resolve));
        data.items.add(new File([blob], "dropped.png", {type: "image/png"}));
        window.dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
    }""")
    expect(page.locator(".query")).to_contain_text("dropped.png")
    expect(tiles(page).first).to_be_visible()


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


def test_shortcuts_are_explained_and_reach_every_view(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("mark the selection wrong")
    shoot(page, "shortcuts-light")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    for key, view in enumerate(("clusters", "map", "moves", "outliers", "search"), start=1):
        page.keyboard.press(str(key))
        expect(page).to_have_url(re.compile(f"#{view}"))
        expect(page.locator("#views [aria-current]")).to_have_count(1)


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
