"""The report on toys: Gaussian blobs with tiny images."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from vitdc.artifacts import RoundRow
from vitdc.report import (
    Decoded,
    ReportData,
    Snapshot,
    build_figures,
    choose_map_indices,
    figure_png,
    map_coordinates,
    pictured_images,
    render_page,
)
from vitdc.report.data import (
    cluster_margin,
    cluster_pictures,
    find_moves,
    is_wrong,
    match_order,
    pictured_clusters,
)
from vitdc.report.page import diagonal_count, nmi_in_words, rounds_story

SCORES = {"nmi": 0.9, "ari": 0.88, "acc": 0.95}


def snapshot(number: int, labels: np.ndarray, num_clusters: int, noise: float) -> Snapshot:
    rng = np.random.default_rng(number)
    centroids = 3 * rng.standard_normal((num_clusters, 4))
    z = centroids[labels % num_clusters] + noise * rng.standard_normal((len(labels), 4))
    distance = np.linalg.norm(z[:, None] - centroids, axis=2)
    return Snapshot(
        round=number,
        embedding=z.astype(np.float32),
        assignment=distance.argmin(axis=1),
        distance=distance.min(axis=1).astype(np.float32),
        centroids=centroids.astype(np.float32),
        coordinates=z[:, :2],
    )


def toy(
    *, num_images: int = 48, num_classes: int = 3, num_clusters: int = 3, num_rounds: int = 3
) -> ReportData:
    rng = np.random.default_rng(0)
    labels = np.arange(num_images) % num_classes
    rows = [RoundRow(round=0, nmi_train=0.7, nmi_test=0.6)]
    for number in range(1, num_rounds + 1):
        loss = 0.5 + 0.3 / number
        rows.append(
            RoundRow(
                number, loss, loss - 0.1, 1.0, 0.8, 0.8, 0.8, 0.8, 0.1 / number, verdict="continue"
            )
        )
    return ReportData(
        title="Toy",
        class_names=[f"kind {i}" for i in range(num_classes)],
        parameters={"seed": 0, "joint": {"gamma": 0.1}},
        metrics={
            "test": SCORES,
            "train": SCORES,
            "head_accuracy": {"train": 1.0, "test": 0.97},
            "pixel_kmeans": {"train": SCORES, "test": {"nmi": 0.432, "ari": 0.3, "acc": 0.5}},
        },
        rows=rows,
        verdict="max-rounds",
        best_round=num_rounds,
        epsilon=0.01,
        gamma=0.1,
        num_train=200,
        num_test=num_images,
        num_unreadable=0,
        images=rng.integers(0, 256, (num_images, 6, 6, 1), dtype=np.uint8),
        labels=labels,
        before=snapshot(0, labels, num_clusters, noise=2.5),
        after=snapshot(num_rounds, labels, num_clusters, noise=0.8),
        map_indices=np.arange(num_images),
        gallery_size=6,
        sizes=np.arange(1, num_clusters + 1) * 200 // (num_clusters * (num_clusters + 1) // 2),
        silhouette=0.456,
        unsure=np.arange(min(2, num_images)),
    )


def unlabelled(data: ReportData) -> ReportData:
    nothing = dict.fromkeys(("nmi", "ari", "acc"))
    return replace(
        data,
        labels=np.full_like(data.labels, -1),
        class_names=(),
        metrics={"test": nothing, "train": nothing, "head_accuracy": {"train": None, "test": None}},
        supervision="none",
        rows=[replace(row, nmi_train=None, nmi_test=None) for row in data.rows],
    )


def decoded(data: ReportData) -> ReportData:
    indices = pictured_images(data)
    pictures = Decoded(indices=indices, images=255 - data.images[indices], error=0.0123)
    return replace(
        data,
        before=replace(data.before, decoded=pictures),
        after=replace(data.after, decoded=replace(pictures, error=0.0456)),
    )


def page(data: ReportData) -> str:
    return render_page(data, build_figures(data))


class Tags(HTMLParser):
    """Collects start tags with their attributes and checks that tags are closed in order."""

    VOID = {"meta", "img", "br", "path", "use", "rect", "line", "circle", "image"}  # noqa: RUF012

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


# --- Which images are wrong, chosen, moved -----------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_wrong_images_are_those_outside_their_clusters_majority(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, assignment = rng.integers(-1, 4, 60), rng.integers(0, 5, 60)
    expected = []
    for label, cluster in zip(labels, assignment, strict=True):
        known = Counter(
            int(other)
            for other, its in zip(labels, assignment, strict=True)
            if its == cluster and other >= 0
        )
        most = max(known.values(), default=0)
        majority = min((name for name, count in known.items() if count == most), default=-1)
        expected.append(label >= 0 and label != majority)
    assert is_wrong(labels, assignment, 5).tolist() == expected


def test_pictures_are_the_nearest_members_and_the_most_doubtful_of_the_others() -> None:
    data = toy()
    for pictures in cluster_pictures(data, data.after):
        members = np.flatnonzero(data.after.assignment == pictures.cluster)
        nearest = sorted(members, key=lambda i: data.after.distance[i])
        assert pictures.typical.tolist() == nearest[:3]
        doubtful = sorted(nearest[3:], key=lambda i: data.after.margin[i])
        assert pictures.doubtful.tolist() == doubtful[:3]
        assert pictures.size == len(members)


def test_margin_is_zero_halfway_and_largest_for_a_lone_cluster() -> None:
    centroids = np.array([[0.0], [2.0]])
    z = np.array([[1.0], [0.0], [2.5]])
    assert cluster_margin(z, centroids, np.array([0, 0, 1])) == pytest.approx([0, 2, 2])
    assert np.isinf(cluster_margin(z, centroids[:1], np.zeros(3, dtype=int))).all()


def test_moves_split_the_images_by_right_and_wrong_before_and_after() -> None:
    data = toy()
    moves = find_moves(data)
    before, after = (is_wrong(data.labels, s.assignment, 3) for s in (data.before, data.after))
    assert set(moves.fixed) == set(np.flatnonzero(before & ~after))
    assert set(moves.broken) == set(np.flatnonzero(~before & after))
    assert set(moves.stayed_wrong) == set(np.flatnonzero(before & after))


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (2, 6)])
def test_matched_pairs_lie_on_the_diagonal(shape: tuple[int, int]) -> None:
    counts = np.random.default_rng(1).integers(0, 20, shape)
    rows, columns = match_order(counts)
    assert sorted(rows) == list(range(shape[0]))
    assert sorted(columns) == list(range(shape[1]))
    diagonal = counts[np.ix_(rows, columns)].diagonal().sum()
    from itertools import permutations

    wide = counts if shape[0] <= shape[1] else counts.T
    best = max(
        sum(wide[i, j] for i, j in enumerate(order))
        for order in permutations(range(wide.shape[1]), len(wide))
    )
    assert diagonal == best


def test_of_many_clusters_those_with_most_wrong_images_are_pictured() -> None:
    data = toy(num_images=300, num_classes=30, num_clusters=30)
    shown = pictured_clusters(data)
    assert len(shown) == 20
    wrong = [is_wrong(data.labels, s.assignment, 30) for s in (data.before, data.after)]
    count = sum(
        np.bincount(s.assignment[w], minlength=30)
        for s, w in zip((data.before, data.after), wrong, strict=True)
    )
    assert min(count[shown]) >= max(np.delete(count, shown))


# --- The map -----------------------------------------------------------------------------------


def test_map_repeats_itself_and_keeps_islands_in_place() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    z = 8 * np.eye(3)[labels] + rng.standard_normal((90, 3))
    before, after = map_coordinates(z, 2 * z, seed=0)
    again, _ = map_coordinates(z, 2 * z, seed=0)
    assert (before == again).all()
    islands = [
        np.array([place[labels == label].mean(axis=0) for label in range(3)])
        for place in (before, after)
    ]
    far = np.linalg.norm(islands[0][:, None] - islands[1], axis=2)
    assert far.argmin(axis=1).tolist() == [0, 1, 2]


def test_map_survives_equal_embeddings_and_one_dimension() -> None:
    before, after = map_coordinates(np.zeros((8, 3)), np.arange(8.0)[:, None], seed=0)
    assert np.isfinite(before).all()
    assert np.isfinite(after).all()


def test_map_takes_a_seeded_subset_and_none_of_too_few() -> None:
    chosen = choose_map_indices(100, max_points=10, seed=1)
    assert len(set(chosen)) == 10
    assert chosen.tolist() == choose_map_indices(100, max_points=10, seed=1).tolist()
    assert len(choose_map_indices(3, max_points=10, seed=1)) == 0
    assert len(choose_map_indices(100, max_points=0, seed=1)) == 0


# --- Figures -----------------------------------------------------------------------------------

ROUND_PANELS = {"nmi", "loss", "gain", "changed"}
MAPS = {"map_before", "map_after"}
CONFUSIONS = {"confusion_before", "confusion_after"}


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (toy(), {*ROUND_PANELS, *MAPS, *CONFUSIONS, "gallery"}),
        (unlabelled(toy()), {"sizes", "loss", "gain", "changed", *MAPS, "gallery"}),
        (toy(num_clusters=5), {*ROUND_PANELS, *MAPS, *CONFUSIONS, "gallery"}),
        (toy(num_clusters=2), {*ROUND_PANELS, *MAPS, *CONFUSIONS, "gallery"}),
        (toy(num_rounds=1), {"nmi", "loss", "changed", *MAPS, *CONFUSIONS, "gallery"}),
        (toy(num_rounds=30), {*ROUND_PANELS, *MAPS, *CONFUSIONS, "gallery"}),
        (toy(num_images=0), ROUND_PANELS),
    ],
    ids=["labels", "no labels", "more clusters", "fewer clusters", "one", "many", "no images"],
)
def test_every_panel_with_something_to_show_is_drawn(data: ReportData, names: set[str]) -> None:
    figures = build_figures(data)
    assert set(figures) == names
    for figure in figures.values():
        assert figure_png(figure).startswith(b"\x89PNG")
    html = render_page(data, figures)
    assert Tags(html).open == []


def test_round_ticks_are_whole_numbers() -> None:
    axes = build_figures(toy(num_rounds=2))["nmi"].axes[0]
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_equal_data_gives_equal_bytes() -> None:
    first, second = (build_figures(decoded(toy())) for _ in range(2))
    for name, figure in first.items():
        assert figure_png(figure) == figure_png(second[name])
    assert render_page(decoded(toy()), first) == render_page(decoded(toy()), second)


# --- Page --------------------------------------------------------------------------------------


def test_page_loads_nothing_from_elsewhere() -> None:
    html = page(decoded(toy()))
    for tag, attributes in Tags(html).tags:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(name) or "#").startswith(("data:image/", "#"))
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_on_the_page_are_unique_and_references_resolve() -> None:
    tags = Tags(page(toy())).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = {a["href"] for _, a in tags if (a.get("href") or "").startswith("#")}
    assert references <= {f"#{name}" for name in ids}


def test_names_are_escaped_and_drawn_literally() -> None:
    names = ["<b>bold</b>", "$\\frac$", "a & b\x1b\n"]
    html = page(replace(toy(), class_names=names, title="<script>x</script>"))
    assert "<b>" not in html
    assert "<script>" not in html
    assert "&lt;b&gt;bold&lt;/b&gt;" in html
    assert "$\\frac$" in html
    assert r"a &amp; b\x1b\n" in html
    assert "\x1b" not in html


def test_exactly_the_wrong_images_of_the_gallery_are_framed() -> None:
    data = decoded(toy())
    expected = 0
    for side in (data.before, data.after):
        wrong = is_wrong(data.labels, side.assignment, 3)
        for pictures in cluster_pictures(data, side):
            expected += int(wrong[[*pictures.typical, *pictures.doubtful]].sum())
    html = page(data)
    assert expected > 0
    assert html.count('class="tile wrong"') == expected
    assert 'class="tile wrong"' not in page(unlabelled(data))


def test_page_says_the_scores_and_the_errors_of_the_decoders() -> None:
    html = page(decoded(toy()))
    for text in ("0.900", "0.432", "97.0%", "95.0%", "0.0123", "0.0456", "joint", "gamma"):
        assert text in html


def test_page_without_labels_claims_no_scores() -> None:
    main = page(unlabelled(toy())).split("<main>")[1]
    assert "No label scores them" in main
    for absent in ("NMI", "confusion", "Head accuracy", "None", "nan", "class unknown"):
        assert absent not in main
    for shown in (
        "0.456",
        "Silhouette",
        "3.3%",
        "Largest cluster",
        "2 of 48 images are less typical",
    ):
        assert shown in main


def test_every_score_says_on_how_many_images_it_was_computed() -> None:
    data = toy()
    metrics = {
        **data.metrics,
        "test": {**SCORES, "images": 1234},
        "train": {**SCORES, "images": 56},
    }
    html = page(replace(data, metrics=metrics, supervision="partial", num_known=144))
    assert "NMI, 1,234 held-out images" in html
    assert "on the 56 whose label was not trained on" in html
    assert "144 of them trained with their label" in html


def test_concerns_stand_below_the_headline() -> None:
    assert 'class="concerns' not in page(toy())
    html = page(replace(toy(), concerns=["Cluster 3 holds 81 % of the images."]))
    assert html.index("Cluster 3 holds 81 %") < html.index("How the rounds went")


def test_large_images_become_thumbnails() -> None:
    data = toy()
    large = np.zeros((len(data.labels), 224, 224, 3), dtype=np.uint8)
    html = page(replace(data, images=large))
    assert "data:image/webp;base64," in html
    assert len(html) < 1_000_000


def test_diagonal_holds_the_images_that_hungarian_accuracy_counts() -> None:
    data = toy()
    after = replace(data.after, assignment=(data.labels + 1) % 3)
    assert diagonal_count(data, after) == len(data.labels)


@pytest.mark.parametrize(
    ("losses", "verdict", "best", "said"),
    [
        ([0.50, 0.40, 0.396], "converged", 3, "3 rounds of retraining, stopped by convergence"),
        ([0.50, 0.40, 0.396], "converged", 3, "fell by only 0.004"),
        ([0.50, 0.60], "loss-rose", 1, "l rose by 0.1 in round 2"),
        ([0.50, 0.40], "max-rounds", 2, "cap on rounds: l last fell by 0.1"),
        ([0.50], "max-rounds", 1, "One round of retraining"),
        ([0.50, 0.40], "settled", 2, "only 0.3% had changed cluster"),
        ([0.50, 0.10], "collapsed", 1, "at most half of the clusters apart (effective rank 1)"),
        ([0.50, 0.40], "of the future", 1, "verdict: of the future"),
    ],
)
def test_story_says_why_the_rounds_stopped(
    losses: list[float], verdict: str, best: int, said: str
) -> None:
    known = {"changed": 0.003, "effective_rank": 1.0}
    rows = [RoundRow(0), *(RoundRow(i, loss, **known) for i, loss in enumerate(losses, start=1))]
    story = rounds_story(replace(toy(), rows=rows, verdict=verdict, best_round=best))
    assert said in story
    assert f"round {best}" in story


def test_better_scores_are_never_described_as_worse() -> None:
    words = [nmi_in_words(score) for score in (0.1, 0.4, 0.7, 0.9, 0.99)]
    assert len(set(words)) == 5


def test_import_is_cheap() -> None:
    heavy = ("torch", "matplotlib", "sklearn", "jinja2", "scipy")
    code = f"import sys, vitdc.report; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- class names in other scripts --------------------------------------------------------------


@pytest.fixture
def cat_font(tmp_path: Path) -> Iterator[str]:
    """The family of a font that has one character, a filled box."""
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("\u732b"): "cat"})
    pen = TTGlyphPen(None)
    for x, y in ((0, 0), (0, 900), (900, 900), (900, 0)):
        (pen.lineTo if (x, y) != (0, 0) else pen.moveTo)((x, y))
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Toy Cat", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cat.ttf")
    before = fontManager.ttflist[:]
    fontManager.addfont(tmp_path / "cat.ttf")
    yield "Toy Cat"
    fontManager.ttflist[:] = before


def test_class_names_are_drawn_by_a_font_that_has_them(
    cat_font: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = replace(toy(), class_names=("\u732b", "dog", "\u732b dog"))
    figures = build_figures(data)
    for axis in (
        figures["map_after"].axes[0].texts,
        figures["confusion_after"].axes[0].get_xticklabels(),
    ):
        assert all(cat_font in text.get_fontfamily() for text in axis)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure_png(figures["map_after"])
    assert not caplog.records


def test_characters_that_no_font_has_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    data = replace(toy(), class_names=("\u732b", "\u72ac", "dog"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in build_figures(data).values():
            figure_png(figure)
    (record,) = caplog.records
    assert "boxes for \u72ac \u732b (class names)" in record.message


def test_names_in_latin_letters_change_no_font() -> None:
    family = build_figures(toy())["map_after"].axes[0].texts[0].get_fontfamily()
    assert family == ["sans-serif"]
