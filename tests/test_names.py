"""Names in one form, and names that no terminal takes for a command."""

from __future__ import annotations

import os
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from vitdc.errors import InputError, TrainingError
from vitdc.names import find_twins, normal_form, printable, printable_lines

NAMES = {
    "plain name-1.png": "plain name-1.png",
    "\u00fcbung \u65e5\u672c \U0001f408": "\u00fcbung \u65e5\u672c \U0001f408",
    "C:\\new": "C:\\new",
    "a\x1b[31mred\x07": r"a\x1b[31mred\x07",
    "two\nlines\r\tand a tab": r"two\nlines\r\tand a tab",
    "\x9b31m\x7f\x00": r"\x9b31m\x7f\x00",  # one character that does what ESC [ does
    "abc\u202egnp.exe\u2066\u2028": r"abc\u202egnp.exe\u2066\u2028",  # turns the direction
    os.fsdecode(b"caf\xe9"): r"caf\xe9",
    "\ud800": r"\ud800",
}


def test_what_a_terminal_would_obey_is_written_out() -> None:
    for name, shown in NAMES.items():
        assert printable(name) == shown
        assert printable_lines(f"{name}\n") == printable_lines(name) + "\n"
    assert printable_lines("a\x1b\nb\r\n") == "a\\x1b\nb\\r\n"


@given(st.text())
def test_any_name_can_be_shown_in_one_line(name: str) -> None:
    shown = printable(name)
    assert len(shown.encode().decode().splitlines()) <= 1
    assert not any(unicodedata.category(each) in ("Cc", "Cs") for each in shown)
    assert printable(shown) == shown


def test_every_error_is_one_line_without_control_characters() -> None:
    for kind in (InputError, TrainingError):
        assert str(kind("b/\x1b[2J\n.png: damaged")) == r"b/\x1b[2J\n.png: damaged"


def test_names_that_differ_in_their_unicode_form_alone_are_found() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert normal_form(decomposed) == composed
    assert find_twins(["cafe", composed, "tea", decomposed]) == (decomposed, composed)
    assert find_twins([composed, composed, "cafe", "CAF\u00c9"]) is None
