"""Image files in a folder that DVC tracks, at one commit of a Git repository.

DVC's own libraries read the repository, so no `git` program is needed. Nothing of it is checked
out: files that lie in the DVC cache or on a remote that is a folder are read there, all others are
fetched one by one when it is their turn.
"""

from __future__ import annotations

import errno
import getpass
import posixpath
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from vitdc import environment
from vitdc.config import DataConfig
from vitdc.data.decoding import File
from vitdc.data.fetching import CHUNK_SIZE, fetch_all
from vitdc.errors import InputError, mask_credentials, one_line


class Revision(NamedTuple):
    """What a name like `main` stands for.

    Attributes:
        commit: Hash of the Git commit, 40 digits.
        content_hash: DVC's hash of the folder: the same whatever the commit, if the files are.
    """

    commit: str
    content_hash: str


class _Opened(NamedTuple):
    """A folder in the index of a repository, while that is open.

    Attributes:
        commit: Hash of the Git commit.
        index: Of the DVC repository that tracks the folder (dvc_data.index.DataIndex).
        entry: The folder in it (dvc_data.index.DataIndexEntry); `key` has the parts of its path.
    """

    commit: str
    index: Any
    entry: Any


class _Listing(NamedTuple):
    """All of a folder that outlives the open repository.

    Attributes:
        revision: What was listed.
        entries: Relative path -> dvc_data.index.DataIndexEntry.
        storage: Where their contents are (dvc_data.index.StorageMapping).
    """

    revision: Revision
    entries: Mapping[str, Any]
    storage: Any


class TrackedFolder:
    """A folder that DVC tracks as a `files.Store`. Nothing is requested before it is needed."""

    chunk_size: ClassVar[int] = CHUNK_SIZE

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None, "the configuration has been checked"
        self._repo = _expand(config.repo)
        self._rev = config.rev
        self._path = posixpath.normpath(config.path).lstrip("/")
        where = mask_credentials(config.repo) if config.repo else "this repository"
        self.location = f"{self._path} in {where} at {config.rev or 'its last commit'}"

    @property
    def origin(self) -> Mapping[str, str]:
        """Commit and hash of the folder, its path, and the URL of a repository that has one."""
        found = {"path": self._path, **self._listing.revision._asdict()}
        if self._repo and _is_url(self._repo):
            found["repo"] = mask_credentials(self._repo).replace("://***@", "://")
        return found

    def names(self) -> list[str]:
        """All files that DVC tracks below the folder, as relative paths."""
        return list(self._listing.entries)

    def files(self, names: Sequence[str]) -> Generator[File]:
        """Paths of the files that are on this machine, contents of those that are not."""
        return fetch_all(self._fetch, names)

    def revision(self) -> Revision:
        """Find out what is there without reading any image."""
        with self._opened() as opened:
            return _revision(opened)

    @cached_property
    def _listing(self) -> _Listing:
        with self._opened() as opened:
            files = {"/".join(key): entry for key, entry in _files(opened)}
            return _Listing(_revision(opened), files, opened.index.storage_map)

    def _fetch(self, name: str) -> str | bytes:
        from dvc_data.index import StorageKeyError

        entry, storage = self._listing.entries.get(name), self._listing.storage
        if entry is None:
            raise InputError(f"{self.location}: {name}: no such file at that commit")
        with self._one_clear_line(name):
            for find in (storage.get_cache, storage.get_remote):
                try:
                    filesystem, path = find(entry)
                except StorageKeyError:  # e.g. no remote is configured
                    continue
                if filesystem.protocol != "local":
                    content: bytes = filesystem.fs.cat_file(path)
                    return content
                if Path(path).is_file():
                    return str(path)
            raise FileNotFoundError

    @contextmanager
    def _opened(self) -> Iterator[_Opened]:
        """Open the repository, of which a temporary clone is made if it is not on this machine."""
        with (
            _temporary_place() as place,
            environment.defaults(_dvc_environment(place)),
            self._one_clear_line(),
        ):
            from dvc.api import DVCFileSystem
            from dvc.repo.open_repo import clean_repos

            is_here = self._repo is None or Path(self._repo).exists()
            rev = self._rev or ("HEAD" if is_here else None)  # not what is uncommitted there
            tree = DVCFileSystem(self._repo, rev=rev, subrepos=True)
            try:
                yield self._find(tree)
            finally:
                tree.close()
                clean_repos()

    def _find(self, tree: Any) -> _Opened:
        commit = tree.repo.get_rev()
        without = "" if tree.repo.dvc_dir else ", and the repository's root has no .dvc"
        try:
            info = tree.info(self._path)
        except FileNotFoundError:
            raise InputError(
                f"{self.location}: no such path{without}; check data.path and data.rev"
            ) from None
        tracked = info.get("dvc_info")
        if not tracked or not tracked["isout"]:
            raise InputError(
                f"{self.location}: not tracked by DVC{without}; name a folder that `dvc add` or a"
                " stage of dvc.yaml put under its control, or one inside it"
            )
        if not (tracked["entry"].hash_info or tracked["entry"].isdir):
            raise InputError(
                f"{self.location}: DVC has no content of it at that commit; run the stage that"
                " makes it and commit dvc.lock"
            )
        if info["type"] != "directory":
            raise InputError(f"{self.location}: a single file; a folder of images is needed")
        return _Opened(commit, info["repo"].index.data["repo"], tracked["entry"])

    @contextmanager
    def _one_clear_line(self, file: str = "") -> Iterator[None]:
        """Say what DVC found in the user's words; Git and every remote have errors of their own.

        Args:
            file: The file that is being fetched, if one is.
        """
        from dvc_data.index import DataIndexDirError

        try:
            yield
        except InputError:
            raise
        except Exception as error:
            if isinstance(error, DataIndexDirError):  # the list of files, which is data too
                why = _why_not_read(error.__cause__ or error)
            elif file:
                why = f"{file}: {_why_not_read(error)}"
            else:
                why = _why_not_open(error)
            raise InputError(f"{self.location}: {why}") from error


def _expand(repo: str | None) -> str | None:
    return str(Path(repo).expanduser()) if repo and repo.startswith("~") else repo


def _is_url(repo: str) -> bool:
    """Whether `repo` means the same on every machine: https://..., ssh://... or git@host:path."""
    return ":" in repo and not repo.startswith("file:") and not Path(repo).exists()


@contextmanager
def _temporary_place() -> Iterator[str]:
    """A folder that takes every temporary file and goes with them: DVC leaves failed clones."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as place:
        tempfile.tempdir = place
        try:
            yield place
        finally:
            tempfile.tempdir = before


def _dvc_environment(cache: str) -> dict[str, str]:
    """What lets DVC work in a container, whose user may have no home, no name and no /var/tmp."""
    values = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": cache}
    try:
        getpass.getuser()
    except (KeyError, OSError):
        values["LOGNAME"] = "nobody"
    if not sys.stdin or not sys.stdin.isatty():
        values["GIT_TERMINAL_PROMPT"] = "0"  # nobody is there to type a password
    return values


def _files(opened: _Opened) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Key relative to the folder and entry of every file below it."""
    start = len(opened.entry.key)
    for key, entry in opened.index.iteritems(opened.entry.key):
        if not entry.isdir:
            yield key[start:], entry


def _revision(opened: _Opened) -> Revision:
    """Commit and hash; DVC records the hash of folders it tracks, but not of those inside them."""
    if opened.entry.hash_info:
        return Revision(opened.commit, opened.entry.hash_info.value)
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for key, entry in _files(opened):
        tree.add(key, entry.meta, entry.hash_info)
    tree.digest()
    return Revision(opened.commit, str(tree.hash_info.value))


def _why_not_open(error: Exception) -> str:
    """What keeps the repository from being opened, and the way out."""
    from dvc.scm import CloneError, RevError, SCMError
    from pygit2 import GitError

    cause = _root_cause(error)
    reason = one_line(cause) or type(cause).__name__
    match error:
        case CloneError():
            return f"cannot be cloned ({reason}); check data.repo, the network and your access"
        case RevError():
            return f"{reason}; check data.rev"
        case SCMError():
            return f"{reason}; data.repo must be a Git repository that you may read"
        case GitError() | PermissionError() | OSError(errno=errno.EROFS):  # of another user
            return f"{reason}; a clone is used if data.repo is its file:// URL"
    return reason


def _root_cause(error: BaseException) -> BaseException:
    """What started it all: the wrappers of Git's errors say nothing."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _why_not_read(error: BaseException) -> str:
    """What keeps data from being read, and the way out."""
    if isinstance(error, FileNotFoundError):
        return (
            "neither in the DVC cache nor on the DVC remote; run `dvc push` where the images were"
            " added"
        )
    reason = one_line(error) or type(error).__name__
    return f"cannot be read from the DVC remote ({reason}); check your access to it"
