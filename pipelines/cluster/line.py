"""The line that shows how a run fares."""

from __future__ import annotations

import datetime
import shutil
from typing import TextIO

from vitdc.names import printable_lines

_CLEAR = "\r\x1b[K"


class ProgressLine:
    """A line that changes on a terminal; elsewhere a line whenever there is something new."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.terminal = stream.isatty()
        self._shown = ""

    def show(self, elapsed: datetime.timedelta, text: str) -> None:
        """Show the state; the time alone is nothing new."""
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write(f"{_CLEAR}{f'{elapsed} {text}'[:width]}")
        elif text != self._shown:
            self.stream.write(f"{elapsed} {text}\n")
        self._shown = text
        self.stream.flush()

    def note(self, text: str) -> None:
        """Say something that stays, in one or several lines."""
        self.stream.write(f"{_CLEAR if self.terminal else ''}{printable_lines(text)}\n")
        self.stream.flush()

    def end(self) -> None:
        """Leave the last state standing."""
        if self.terminal and self._shown:
            self.stream.write("\n")
        self._shown = ""
