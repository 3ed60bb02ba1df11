"""Names of files and classes: the form in which they are compared, and what a terminal shows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

# Control characters, separators of lines, marks that turn the direction of text, bytes that are no
# UTF-8 (os.fsdecode)
_NOT_SHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def normal_form(name: str) -> str:
    """NFC, in which names are compared: macOS and Linux write one accented letter differently."""
    return unicodedata.normalize("NFC", name)


def find_twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Two different names that have one normal form."""
    seen: dict[str, str] = {}
    for name in sorted(set(names)):
        first = seen.setdefault(normal_form(name), name)
        if first != name:
            return first, name
    return None


def listed(texts: Sequence[str], most: int, *, separator: str = ", ") -> str:
    """The first `most` of some texts for a message, and how many more there are."""
    rest = len(texts) - most
    return separator.join(texts[:most]) + (f" and {rest} more" if rest > 0 else "")


def printable(text: str) -> str:
    """Text in one line that no terminal takes for a command: an escape character becomes \\x1b."""
    return _NOT_SHOWN.sub(_escape, text)


def printable_lines(text: str) -> str:
    """Likewise, in as many lines as the text has."""
    return "\n".join(map(printable, text.split("\n")))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # the byte that it stands for
    return match[0].encode("unicode_escape").decode()
