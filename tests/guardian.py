"""Ends the servers of a pytest that was itself killed, and removes their folders.

servers.py starts it in a session of its own, which no Ctrl-C reaches. A line on standard input,
`group NUMBER` or `folder PATH`, names what has to go when standard input ends, as it does however
pytest ends; `release NUMBER` or `release PATH` takes it back.
"""

import os
import shutil
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Listen until pytest is gone, then clean up."""
    left: dict[str, str] = {}
    for line in sys.stdin:
        kind, name = line.rstrip("\n").split(" ", 1)
        if kind == "release":
            left.pop(name, None)
        else:
            left[name] = kind
    for name in [name for name, kind in left.items() if kind == "group"]:
        with suppress(ProcessLookupError):
            os.killpg(int(name), signal.SIGKILL)
    for name in [name for name, kind in left.items() if kind == "folder"]:
        shutil.rmtree(name, ignore_errors=True)


if __name__ == "__main__":
    main()
