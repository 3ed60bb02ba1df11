"""The page of a comparison: complete, self-contained, small, sortable in a real browser."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from comparisons import toy_result, toy_results
from test_report import Tags

from vitdc.comparison import compare
from vitdc.report.comparison import difference_in_words, render_comparison
from vitdc.report.curves import draw_curves, draw_differences, group_styles

CHROMIUM = shutil.which("chromium")


def test_the_page_shows_every_run_group_and_difference() -> None:
    runs = toy_results(("0", "0.1", "1"), num_seeds=3)
    page = render_comparison(compare(runs))
    assert Tags(page).open == []
    assert all(run.label in page for run in runs)
    assert page.count('<svg class="swatch"') == len(runs) + 3
    assert "Paired differences" in page
    assert all(f'id="{name}-' in page for name in ("nmi_test", "nmi_train", "loss", "differences"))


def test_the_page_loads_nothing_and_is_small() -> None:
    page = render_comparison(compare(toy_results(map(str, range(9)), num_seeds=5)))
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "url(" not in page.replace("url(#", "")
    assert "@import" not in page
    assert len(page) < 500_000


def test_equal_runs_give_equal_pages() -> None:
    assert render_comparison(compare(toy_results())) == render_comparison(compare(toy_results()))


def test_what_a_person_called_a_run_is_escaped() -> None:
    runs = toy_results()
    runs[0] = replace(runs[0], label="<script>alert(1)</script>", name="$x_{1$ & more")
    runs[1] = replace(runs[1], params={**runs[1].params, "joint.gamma": '"$a_{<b>$"'})
    page = render_comparison(compare(runs))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>" not in page


def test_the_headline_says_whether_there_is_a_difference() -> None:
    assert "Higher, by more than the noise" in render_comparison(compare(toy_results(gain=0.2)))
    assert "Within the noise" in render_comparison(compare(toy_results(gain=0.0)))
    alone = compare([toy_result(0, 0.8, gamma="0"), toy_result(0, 0.9, gamma="1")])
    assert "how much of this is noise cannot be said" in render_comparison(alone)
    apart = compare([toy_result(0, 0.8, gamma="0"), toy_result(1, 0.9, gamma="1")])
    assert "no seed in common" in render_comparison(apart)
    seeds = render_comparison(compare([toy_result(seed) for seed in range(3)]))
    assert "All runs differ in nothing but the seed" in seeds
    many = render_comparison(compare(toy_results(("0", "1", "2", "3"), gain=0.2)))
    assert "3 of 3" in many
    assert "confirm a winner with new seeds" in many


def test_runs_without_labels_still_have_their_loss() -> None:
    runs = [
        replace(run, values={"loss": 1.0, "rounds": 3}, curves={"loss": run.curves["loss"]})
        for run in toy_results()
    ]
    page = render_comparison(compare(runs))
    assert "No held-out image has a label" in page
    assert 'id="loss-' in page
    assert 'id="nmi_test-' not in page


def test_warnings_stand_on_the_page() -> None:
    runs = [toy_result(0), toy_result(0, data="b" * 16)]
    assert "not on the same data" in render_comparison(compare(runs))


def test_the_sentence_has_the_interval() -> None:
    found = compare(toy_results(gain=0.1)).differences[0]
    assert found.interval is not None
    assert f"+{found.interval[0]:.3f} to +{found.interval[1]:.3f}" in difference_in_words(found)


def test_runs_of_a_group_share_a_style_and_no_two_groups_do() -> None:
    comparison = compare(toy_results(map(str, range(16)), num_seeds=1))
    assert len(set(group_styles(comparison.groups).values())) == 16


def test_the_figures_draw_a_line_per_run_and_one_per_mean() -> None:
    figure = draw_curves(compare(toy_results(num_seeds=3)), "nmi_test")
    assert figure is not None
    widths = [line.get_linewidth() for line in figure.axes[0].lines if len(line.get_xdata()) > 1]
    assert sorted(widths) == [1.0] * 6 + [2.6] * 2


def test_the_interval_is_drawn_where_it_is() -> None:
    comparison = compare(toy_results())
    figure = draw_differences(comparison, "nmi_test")
    assert figure is not None
    bars = [line.get_xdata() for line in figure.axes[0].lines if line.get_linewidth() == 2.4]
    assert [tuple(bar) for bar in bars] == [comparison.differences[0].interval]
    low, high = figure.axes[0].get_xlim()
    assert low < 0 < high


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_and_sorts_the_page(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    path = tmp_path / "page.html"
    path.write_text(render_comparison(compare(toy_results())))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda request: wrong.append(request.url) if "http" in request.url else 0
        )
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        column = "[...document.querySelectorAll('#runs tbody tr')].map(r => r.cells[3].textContent)"
        page.get_by_role("button", name="NMI", exact=True).click()
        rising = page.evaluate(column)
        page.get_by_role("button", name="NMI", exact=True).click()
        falling = page.evaluate(column)
        browser.close()
    assert rising == sorted(rising)
    assert falling == rising[::-1]
    assert wrong == []
