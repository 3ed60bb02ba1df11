"""How fast the page of `vitdc explore` is with 70,000 images: first paint, and frames per second.

    apt-get install dataset-fashion-mnist chromium
    python benchmarks/explore.py --output outputs/explore

Makes real results of Fashion-MNIST first (one epoch, one round; some minutes), unless --output
holds them from last time. Then headless Chromium opens the page and drags, zooms and points at
things, with software rendering, so that no graphics card helps. A frame counts when the browser
asked the page for it (requestAnimationFrame); "idle" is the same measure with nothing to do: what
the machine can show at best. The cache is empty at first: "map ready" is the time to make the map.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from tqdm import tqdm

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_OPTIONS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SHORT = (
    "pretraining.epochs=1", "convergence.max_rounds=1",
    "evaluation.pixel_baseline=false", "clustering.num_restarts=1", "tracking.enabled=false",
)  # fmt: skip
VITDC = Path(sys.executable).with_name("vitdc")
FRAMES = """() => {
  const gaps = frames.slice(1).map((time, index) => time - frames[index]).sort((a, b) => a - b);
  const total = gaps.reduce((sum, gap) => sum + gap, 0);
  return {fps: 1000 * gaps.length / total, p95_ms: gaps[Math.floor(0.95 * gaps.length)]};
}"""

PAINTED = """() => new Promise((resolve) => {
  const find = (list) => list.getEntriesByName("first-contentful-paint").forEach(
    (entry) => resolve(entry.startTime));
  new PerformanceObserver(find).observe({type: "paint", buffered: true});
})"""


def make_results(output: Path) -> Path:
    """A short run on all of Fashion-MNIST."""
    results = output / "results"
    if not results.is_dir():
        settings = [part for setting in SHORT for part in ("-S", setting)]
        params = ["--params", "params/fashion-mnist.yaml", "--output", output]
        subprocess.run([VITDC, "run", *params, *settings], check=True)
    return results


@contextmanager
def serving(results: Path, *options: str) -> Iterator[str]:
    """The address of the page, with an empty cache, until the block ends."""
    command = [str(VITDC), "explore", str(results), "--no-open", *options]
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": cache}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if " at " not in line:
                raise SystemExit(f"{' '.join(command)}: did not start")
            yield line.split(" at ")[1].split()[0]
        finally:
            process.terminate()
            process.wait()


def frames_per_second(page: Page, act: Callable[[], None]) -> dict[str, float]:
    """How often the browser asked the page for a frame while something is done."""
    page.evaluate("frames.length = 0")
    act()
    found: dict[str, float] = page.evaluate(FRAMES)
    return found


def first_paint(page: Page, address: str) -> dict[str, float]:
    """Seconds from the request to the first pictures of all clusters, and what the browser says."""
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("body[data-ready=page]")
    ready = time.perf_counter() - start
    painted = page.evaluate(PAINTED)
    return {"first_contentful_paint_s": painted / 1000, "clusters_drawn_s": ready}


def interactions(page: Page) -> dict[str, Callable[[], None]]:
    """What is done on the map, by name; each takes about two seconds at full speed."""
    box = page.locator("canvas.points").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def around(radius: float) -> None:
        for step in range(120):
            angle = step / 10
            page.mouse.move(x + radius * math.cos(angle), y + radius * math.sin(angle))
            page.wait_for_timeout(8)

    def drag() -> None:
        page.mouse.move(x, y)
        page.mouse.down()
        around(120)
        page.mouse.up()

    def zoom() -> None:
        for step in range(100):
            page.mouse.wheel(0, -60 if step < 50 else 60)
            page.wait_for_timeout(10)

    return {
        "idle": lambda: page.wait_for_timeout(2000),
        "drag": drag,
        "zoom": zoom,
        "hover": lambda: around(250),
    }


def scroll(page: Page) -> None:
    """Through one large cluster, a screen at a time."""
    for _ in range(60):
        page.mouse.wheel(0, 500)
        page.wait_for_timeout(20)


def measure(address: str, pictures: Path) -> dict[str, Any]:
    """Open the page and use it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        found: dict[str, Any] = first_paint(page, address)
        page.screenshot(path=pictures / "clusters.png")
        page.evaluate(
            "window.frames = []; (function next(time) { frames.push(time);"
            " requestAnimationFrame(next); })(performance.now())"
        )
        start = time.perf_counter()
        page.evaluate("location.hash = '#map'")
        page.wait_for_selector(".view[data-ready=map]", timeout=600_000)
        found["map_ready_s"] = time.perf_counter() - start
        page.screenshot(path=pictures / "map.png")
        for name, act in tqdm(interactions(page).items(), desc="map"):
            found[name] = frames_per_second(page, act)
        page.evaluate("location.hash = '#clusters/0'")
        page.locator(".grid .tile").first.hover()
        found["scroll"] = frames_per_second(page, lambda: scroll(page))
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/explore"))
    output = parser.parse_args().output
    results = make_results(output)
    with serving(results) as address:
        found = measure(address, output)
    (output / "explore.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"first contentful paint  {found['first_contentful_paint_s']:.2f} s")
    print(f"all clusters drawn      {found['clusters_drawn_s']:.2f} s")
    print(f"map ready               {found['map_ready_s']:.1f} s")
    for name in ("idle", "drag", "zoom", "hover", "scroll"):
        values = found[name]
        print(f"{name:<8} {values['fps']:5.1f} frames/s, 95% within {values['p95_ms']:.0f} ms")


if __name__ == "__main__":
    main()
