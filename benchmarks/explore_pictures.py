"""The pictures of `vitdc explore` in the README, from the results of a run on the digits.

    apt-get install chromium
    make demo
    python benchmarks/explore_pictures.py results

Writes docs/images/explore.png and docs/images/explore-map.png. Names are given to a copy of the
results, and go with it.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from explore import CHROMIUM, CHROMIUM_OPTIONS, serving
from playwright.sync_api import Browser, Page, expect, sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
NAMES = ("zero", "one", "two", "three", "four", "", "six", "seven", "", "")  # work in progress
TIP = np.array([216, 108])  # pixels


def open_page(browser: Browser, address: str) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    page.wait_for_selector("body[data-ready=page]")
    return page


def give_names(page: Page) -> None:
    """Most clusters get the name of their most frequent digit."""
    for cluster in range(page.locator("#sidebar .entry").count()):
        page.evaluate(f"location.hash = '#clusters/{cluster}'")
        expect(page.locator("#name")).to_have_attribute("placeholder", f"Cluster {cluster}")
        name = NAMES[int(page.locator(".confusion dt").first.inner_text())]
        if name:
            page.locator("#name").fill(name)
            page.keyboard.press("Enter")
            expect(page.locator("#sidebar .entry").nth(cluster)).to_contain_text(name)


def show_cluster(page: Page) -> None:
    """A cluster without a name, most typical images first; one of them is shown beside."""
    page.locator("#sidebar .entry", has_text="Cluster").first.click()
    page.locator(".view .grid").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#inspector h2")).to_be_visible()


def show_map(page: Page, address: str) -> None:
    """All images; the pointer is where what it shows covers the fewest others."""
    page.evaluate("location.hash = '#map'")
    page.wait_for_selector(".view[data-ready=map]", timeout=600_000)
    box = page.locator("canvas.points").bounding_box()
    assert box is not None
    size = np.array([box["width"], box["height"]])
    places = np.frombuffer(page.request.get(f"{address}api/map").body(), np.float32).reshape(-1, 2)
    places = size / 2 + places * [1, -1] * (0.47 * size.min())
    away = places > size - [250, 130]  # from the right and the lower edge
    corners = places + np.where(away, [-230, -112], 14)
    covered = [int(((places > c) & (places < c + TIP)).all(axis=1).sum()) for c in corners]
    x, y = places[int(np.argmin(covered))]
    page.mouse.move(box["x"] + x, box["y"] + y)
    expect(page.locator(".tip")).to_be_visible()


def take(page: Page, name: str) -> None:
    expect(page.locator(".toast")).to_have_count(0, timeout=60_000)
    page.wait_for_timeout(1000)  # until the pictures are there
    page.screenshot(path=IMAGES / name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=Path)
    results = parser.parse_args().results
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        copy = Path(shutil.copytree(results, Path(directory) / "results"))
        for name in ("dataset", "rounds", "outputs"):  # where explore looks for them
            (copy.parent / name).symlink_to(results.absolute().parent / name)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        with serving(copy) as address:
            page = open_page(browser, address)
            give_names(page)
            page.close()  # with its messages
            page = open_page(browser, address)
            show_cluster(page)
            take(page, "explore.png")
            page.keyboard.press("Escape")
            show_map(page, address)
            take(page, "explore-map.png")
        browser.close()


if __name__ == "__main__":
    main()
