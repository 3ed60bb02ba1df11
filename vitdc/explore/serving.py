"""From a finished run to a page that answers until Ctrl-C."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import threading
import webbrowser
from pathlib import Path

import click
import uvicorn

from vitdc import environment
from vitdc.errors import InputError
from vitdc.explore.collection import Collection
from vitdc.explore.finding import FinishedRun
from vitdc.explore.server import create_app

ADDRESS = "127.0.0.1"
USUAL_PORT = 8790  # the same address every time, so that a browser keeps what it knows


def serve(run: FinishedRun, *, port: int | None, open_browser: bool) -> None:
    """Serve the page on the loopback interface until Ctrl-C.

    Args:
        run: What it shows.
        port: Where; None for `USUAL_PORT`, or any free one if that is taken.
        open_browser: Open it in the browser of this machine.

    Raises:
        InputError: The port is taken, or the cache cannot be written.
    """
    with listen(port) as listening:
        number = listening.getsockname()[1]
        app = create_app(Collection(run), cache=cache_directory(run), hosts=hosts_of(number))
        address = f"http://{ADDRESS}:{number}/"
        click.echo(f"explore {run.results} at {address} (Ctrl-C ends it)")
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            click.echo()  # after the ^C


def listen(port: int | None) -> socket.socket:
    """A socket that listens on the loopback interface.

    Raises:
        InputError: The port asked for is taken or not allowed.
    """
    try:
        return socket.create_server((ADDRESS, USUAL_PORT if port is None else port))
    except OSError as error:
        if port is None and error.errno == errno.EADDRINUSE:
            return socket.create_server((ADDRESS, 0))
        reason = os.strerror(error.errno or 0)
        raise InputError(
            f"--port {port or USUAL_PORT}: {reason}; name another, or leave it out for a free one"
        ) from None


def hosts_of(port: int) -> set[str]:
    """What browsers call this machine: they leave out the usual port of HTTP."""
    names = {ADDRESS, "localhost"}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())


def cache_directory(run: FinishedRun) -> Path:
    """Where thumbnails and the map of these images are kept; may be deleted at any time.

    Raises:
        InputError: It cannot be written.
    """
    directory = environment.user_cache("explore") / run.dataset_digest[:16]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(
            f"{directory}: cannot be written: {error.strerror}; set XDG_CACHE_HOME to a directory"
            " that can"
        ) from None
    return directory
