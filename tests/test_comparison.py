"""Groups over seeds and paired differences, against NumPy and SciPy; the comparison as tables."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from comparisons import toy_result, toy_results
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vitdc.comparison import Difference, compare
from vitdc.comparison.groups import (
    EQUAL,
    HIGHER,
    LOWER,
    NO_PAIR,
    ONE_PAIR,
    OTHER_DATA,
    UNCLEAR,
    short_names,
)
from vitdc.comparison.tables import FORMATS, WIDTH, as_csv, as_json, as_markdown, as_text
from vitdc.errors import InputError

NMI = st.floats(0, 1, allow_nan=False).map(lambda value: round(value, 6))


def difference(*values: float) -> Difference:
    return Difference("group", "nmi_test", {str(seed): v for seed, v in enumerate(values)})


# --- paired differences ------------------------------------------------------------------------


@given(st.lists(st.tuples(NMI, NMI), min_size=2, max_size=12))
def test_paired_differences_are_those_of_scipy_s_paired_t_test(
    pairs: list[tuple[float, float]],
) -> None:
    base, other = np.array(pairs).T
    runs = [
        toy_result(seed, nmi, gamma=gamma)
        for gamma, nmis in (("0", base), ("1", other))
        for seed, nmi in enumerate(nmis)
    ]
    found = compare(runs).differences[0]
    assert found.num_pairs == len(pairs)
    assert found.num_higher == int((other > base).sum())
    assert found.mean == pytest.approx((other - base).mean(), abs=1e-12)
    assert found.standard_error == pytest.approx(stats.sem(other - base), abs=1e-12)
    assert found.interval is not None
    if np.ptp(other - base) > 1e-9:  # SciPy gives nan where nothing scatters
        expected = stats.ttest_rel(other, base).confidence_interval(0.95)
        assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_order_of_the_runs_changes_nothing_but_the_baseline() -> None:
    runs = toy_results()
    forwards, backwards = compare(runs), compare(runs[::-1])
    assert forwards.baseline.label == "gamma=0.0"
    assert backwards.baseline.label == "gamma=0.1"
    assert forwards.differences[0].mean == pytest.approx(-(backwards.differences[0].mean or 0))


def test_only_common_seeds_are_paired() -> None:
    base = [toy_result(seed, 0.8, gamma="0") for seed in (0, 1, 2)]
    other = [toy_result(seed, 0.8 + 0.01 * seed, gamma="1") for seed in (1, 2, 7)]
    assert set(compare([*base, *other]).differences[0].by_seed) == {"1", "2"}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((), NO_PAIR),
        ((0.5,), ONE_PAIR),
        ((0.01, -0.01, 0.02), UNCLEAR),
        ((0.1, 0.11, 0.09), HIGHER),
        ((-0.1, -0.11, -0.09), LOWER),
        ((0.0, 0.0), EQUAL),
    ],
)
def test_the_verdict_says_what_the_numbers_allow(values: tuple[float, ...], verdict: str) -> None:
    assert difference(*values).verdict == verdict


def test_one_pair_has_no_interval() -> None:
    found = difference(0.5)
    assert found.mean == 0.5
    assert found.standard_error is None
    assert found.interval is None


# --- groups ------------------------------------------------------------------------------------


def test_runs_that_differ_only_in_the_seed_are_a_group() -> None:
    comparison = compare(toy_results(num_seeds=3))
    assert [group.label for group in comparison.groups] == ["gamma=0.0", "gamma=0.1"]
    assert [len(group.runs) for group in comparison.groups] == [3, 3]
    assert list(comparison.varying) == ["joint.gamma", "seed"]
    assert comparison.common == {"joint.epochs": "2"}


@given(st.lists(NMI, min_size=2, max_size=9))
def test_a_group_is_summarised_by_mean_and_sample_deviation(values: list[float]) -> None:
    group = compare([toy_result(seed, nmi) for seed, nmi in enumerate(values)]).baseline
    found = group.summary("nmi_test")
    assert found is not None
    assert found.num == len(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_the_baseline_may_be_any_run_s_group() -> None:
    runs = toy_results(("0", "1", "2"))
    comparison = compare(runs, baseline=runs[-1].id)
    assert [group.label for group in comparison.groups] == ["gamma=2", "gamma=0", "gamma=1"]


def test_where_the_data_lie_and_what_the_report_shows_is_no_difference() -> None:
    one = toy_result(0, **{"data.root": '"/here"', "evaluation.map_points": "1"})
    two = toy_result(1, **{"data.root": '"/there"', "evaluation.map_points": "2"})
    comparison = compare([one, two])
    assert len(comparison.groups) == 1
    assert list(comparison.varying) == ["seed"]


def test_a_parameter_that_one_run_has_not_recorded_is_no_difference() -> None:
    comparison = compare([toy_result(0, gamma="0.1"), toy_result(1)])
    assert list(comparison.varying) == ["seed"]
    assert comparison.common["joint.gamma"] == "0.1"


def test_runs_on_other_data_are_not_paired_unless_asked_for() -> None:
    runs = [toy_result(s, 0.8, data=data) for data in ("a" * 16, "b" * 16) for s in range(3)]
    apart = compare(runs)
    assert [group.label for group in apart.groups] == ["data=aaaaaaaa", "data=bbbbbbbb"]
    assert apart.differences[0].verdict == OTHER_DATA
    assert apart.differences[0].num_pairs == 0
    assert "not on the same data" in apart.warnings[0]
    assert apart.data is None

    settings = [replace(r, params={**r.params, "data.image_size": r.data[0]}) for r in runs]
    together = compare(settings, across_data=True)
    assert together.differences[0].num_pairs == 3
    assert "differences may be those of the images" in together.warnings[0]


def test_unknown_data_are_said_to_be_unknown() -> None:
    comparison = compare([toy_result(seed, data="") for seed in (0, 1)])
    assert "No run says on which data" in comparison.warnings[0]


def test_a_repeated_run_counts_once_and_is_named() -> None:
    again = replace(toy_result(0, 0.5), id="again", label="again")
    comparison = compare([toy_result(0, 0.8), toy_result(1, 0.9), again])
    found = comparison.baseline.summary("nmi_test")
    assert found is not None
    assert found.num == 2
    assert "again" in comparison.warnings[0]
    assert comparison.group_of(again) is None


def test_a_run_without_a_result_is_in_the_curves_only() -> None:
    running = replace(toy_result(1, gamma="1"), values={}, state="running", best_round=None)
    comparison = compare([toy_result(0, gamma="0"), toy_result(1, gamma="0"), running])
    assert comparison.differences[0].num_pairs == 0
    assert running.label in comparison.warnings[0]
    assert comparison.groups[1].mean_curve("nmi_test") == running.curves["nmi_test"]


def test_a_mean_curve_ends_where_the_first_run_does() -> None:
    group = compare([toy_result(0, 0.7, rounds=2), toy_result(1, 0.9, rounds=5)]).baseline
    curve = group.mean_curve("nmi_test")
    assert list(curve) == [0, 1, 2]
    assert curve[0] == pytest.approx(0.8 - 0.1)


def test_one_run_is_nothing_to_compare() -> None:
    with pytest.raises(InputError, match="at least two"):
        compare([toy_result(0)])


def test_names_are_as_short_as_they_can_be() -> None:
    names = ["joint.gamma", "joint.epochs", "pretraining.epochs"]
    assert list(short_names(names).values()) == ["gamma", "joint.epochs", "pretraining.epochs"]


def test_a_parameter_with_quotes_is_shown_as_it_is() -> None:
    runs = [replace(run, params={**run.params, "name": '"a"b"'}) for run in toy_results()]
    assert 'name="a"b"' in as_text(compare(runs))


def test_names_from_elsewhere_do_nothing_to_a_terminal() -> None:
    runs = toy_results()
    evil = "a\x1b[2J\rb\nc"
    runs = [replace(runs[0], label=evil, params={**runs[0].params, "tag": evil}), *runs[1:]]
    for form in (as_text, as_markdown):
        text = form(compare(runs))
        assert r"a\x1b[2J\rb\nc" in text
        assert not set(text) & set("\x1b\r")
    row = next(csv.DictReader(io.StringIO(as_csv(compare(runs)), newline="")))
    assert row["run"] == evil


# --- as text -----------------------------------------------------------------------------------


def test_the_terminal_shows_runs_groups_and_differences_in_100_columns() -> None:
    runs = toy_results()
    text = as_text(compare(runs))
    assert max(map(len, text.splitlines())) <= WIDTH
    for run in runs:
        line = next(line for line in text.splitlines() if line.startswith(run.label))
        assert f" {run.values['nmi_test']:.3f} " in line
    assert "\ngamma=0.1\n  NMI        3  +" in text
    assert text.count("joint.epochs=2") == 1  # what is equal is said once


def test_a_table_that_is_too_wide_becomes_two() -> None:
    wide = {f"model.a_long_parameter_name_{i}": f'"{i}"' for i in range(3)}
    runs = [toy_result(0, gamma="0"), toy_result(0, gamma="1", **wide), toy_result(0, gamma="2")]
    runs[2] = replace(runs[2], params={**runs[2].params, **dict.fromkeys(wide, '"x"')})
    text = as_text(compare(runs))
    headings = [line for line in text.splitlines() if line.startswith("run ")]
    assert ["a_long" in heading for heading in headings] == [True, False]


def test_few_seeds_are_said_plainly() -> None:
    text = as_text(compare([toy_result(0, 0.8, gamma="0"), toy_result(0, 0.9, gamma="1")]))
    assert ONE_PAIR in text
    assert "Run each setting with the same few seeds" in " ".join(text.split())
    assert "p =" not in text


def test_csv_has_a_row_per_run_with_all_digits() -> None:
    runs = toy_results()
    rows = list(csv.DictReader(io.StringIO(as_csv(compare(runs)))))
    assert [float(row["nmi_test"]) for row in rows] == [run.values["nmi_test"] for run in runs]
    assert [row["joint.gamma"] for row in rows] == ["0.0"] * 3 + ["0.1"] * 3
    assert [row["group"] for row in rows] == ["gamma=0.0"] * 3 + ["gamma=0.1"] * 3


def test_json_has_everything() -> None:
    comparison = compare(toy_results())
    found = json.loads(as_json(comparison))
    assert found["baseline"] == "gamma=0.0"
    assert found["parameters"] == {"joint.epochs": 2}
    assert found["runs"][0]["parameters"] == {"joint.gamma": 0.0, "seed": 0}
    assert found["differences"][0]["interval"] == list(comparison.differences[0].interval or ())
    assert found["groups"][1]["nmi_test"]["num"] == 3


def test_markdown_tables_are_even() -> None:
    runs = [replace(run, label=f"a|{i}") for i, run in enumerate(toy_results())]
    text = as_markdown(compare(runs))
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_takes_runs_without_labels(form: str) -> None:
    runs = [
        replace(run, values={"loss": 1.0, "rounds": 3}, curves={"loss": run.curves["loss"]})
        for run in toy_results()
    ]
    assert "gamma" in FORMATS[form](compare(runs))


def test_runs_without_labels_are_compared_by_their_silhouette_with_a_warning() -> None:
    runs = [
        replace(run, values={"silhouette": 0.5 + 0.1 * (index > 2), "loss": 1.0, "rounds": 3})
        for index, run in enumerate(toy_results())
    ]
    comparison = compare(runs)
    text = as_text(comparison)
    assert "No held-out image has a label" in text
    assert "NMI" not in text
    assert "Silhouette per group" in text
    assert [each.score for each in comparison.differences] == ["silhouette"]
    assert comparison.differences[0].mean == pytest.approx(0.1)
