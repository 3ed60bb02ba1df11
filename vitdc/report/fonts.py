"""Fonts for class names in any script, in the pictures; the page leaves that to the browser."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

logger = logging.getLogger(__name__)

UNUSABLE = "Last Resort"  # matplotlib's own: it draws a box with a hint instead of any character


@contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Draw what is in `texts` with installed fonts that have it, where matplotlib's own has not.

    What none has is said once; it is drawn as boxes.
    """
    import matplotlib as mpl
    from matplotlib.font_manager import FontProperties, findfont

    missing = {character for text in texts for character in text if character.isprintable()}
    families = [*mpl.rcParams["font.family"]]
    missing -= _characters(findfont(FontProperties(family=families)))
    if missing:  # a font that is only regular is drawn so where bold is wanted, which it would say
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    while missing and (best := _best(missing)):
        families.append(best.name)
        missing -= _characters(best.fname)
    if missing:
        logger.warning(
            "the pictures show boxes for %s (class names), which no installed font has; install one"
            " that does, e.g. `apt install fonts-noto-cjk` for Chinese, Japanese and Korean, and"
            " evaluate again; report.html shows them by the browser's fonts",
            " ".join(sorted(missing)[:10]) + (" ..." if len(missing) > 10 else ""),
        )
    with mpl.rc_context({"font.family": families}):
        yield


def _best(missing: set[str]) -> FontEntry | None:
    """The installed font that has the most of some characters; None where none has any."""
    from matplotlib.font_manager import fontManager

    usable = [font for font in fontManager.ttflist if UNUSABLE not in font.name]
    found = [len(missing & _characters(font.fname)) for font in usable]
    return usable[found.index(max(found))] if any(found) else None


def _characters(file: str) -> set[str]:
    """All that a font can draw."""
    from matplotlib.font_manager import get_font

    return {chr(code) for code in get_font(file).get_charmap()}
