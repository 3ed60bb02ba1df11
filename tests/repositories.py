"""Git repositories whose images DVC tracks, made for a test."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import urlsplit

from dvc.repo import Repo

WEB_USER = "tester:open-sesame"
IDENTITY = ("-c", "user.name=tester", "-c", "user.email=tester@example.com")


class Repository(NamedTuple):
    """A repository at `path`; DVC is set up in its root."""

    path: Path

    @classmethod
    def make(cls, path: Path, *, remote: str | None = None, **options: str) -> Repository:
        """Make one with a DVC remote and its options, if any."""
        subprocess.run(["git", "init", "-q", "-b", "main", path], check=True)
        repository = cls(path)
        with _site_cache(path):
            Repo.init(str(path)).close()
        if remote is not None:
            with repository.dvc() as dvc, dvc.config.edit() as config:
                config["core"]["remote"] = "storage"
                config["remote"]["storage"] = {"url": remote, **options}
        repository.commit("set DVC up")
        return repository

    def git(self, *arguments: str) -> str:
        """What a Git command prints."""
        command = ["git", "-C", str(self.path), *IDENTITY, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, message: str) -> str:
        """Commit everything; gives the commit's hash."""
        self.git("add", "--all")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    @contextmanager
    def dvc(self) -> Iterator[Any]:
        """DVC's own object for the repository."""
        with _site_cache(self.path), Repo(str(self.path)) as dvc:
            yield dvc

    def add(self, folder: Path, path: str = "data/images") -> None:
        """Let DVC track a copy of `folder` under `path` in the workspace."""
        shutil.rmtree(self.path / path, ignore_errors=True)
        shutil.copytree(folder, self.path / path)
        with self.dvc() as dvc:
            dvc.add(str(self.path / path))

    def track(self, folder: Path, path: str = "data/images") -> str:
        """Add, push and commit a copy of `folder`; gives the commit's hash."""
        self.add(folder, path)
        with self.dvc() as dvc:
            dvc.push()
        return self.commit(f"track {path}")

    @property
    def cache(self) -> Path:
        """Folder of the DVC cache."""
        return self.path / ".dvc" / "cache"


@contextmanager
def _site_cache(path: Path) -> Iterator[None]:
    """Keep what DVC caches per machine beside the repository."""
    place = str(path.with_name("site-cache"))
    with mock.patch.dict("os.environ", {"DVC_SITE_CACHE_DIR": place}):
        yield


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the Git repositories in `folder` to WEB_USER over HTTP; gives host and port.

    Git's own back end answers; libgit2 wants HTTP/1.1, which Python's CGI server does not speak.
    """
    expected = "Basic " + base64.b64encode(WEB_USER.encode()).decode()
    exec_path = subprocess.check_output(["git", "--exec-path"], text=True).strip()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            request = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") == expected:
                self.reply(*self.ask_git(request))
            else:
                self.reply([("Status", "401"), ("WWW-Authenticate", "Basic")], b"")

        def ask_git(self, request: bytes) -> tuple[list[tuple[str, str]], bytes]:
            url = urlsplit(self.path)
            variables = {
                "GIT_PROJECT_ROOT": str(folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "PATH_INFO": url.path,
                "QUERY_STRING": url.query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(request)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            }
            output = subprocess.check_output(
                [f"{exec_path}/git-http-backend"], input=request, env={**os.environ, **variables}
            )
            headers, _, body = output.partition(b"\r\n\r\n")
            lines = headers.decode().splitlines()
            return [tuple(line.split(": ", 1)) for line in lines], body

        def reply(self, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(int(dict(headers).get("Status", "200")[:3]))
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

        do_GET = do_POST = answer  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
