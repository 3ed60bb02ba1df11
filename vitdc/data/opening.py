"""Which source a name in `data.source` means."""

from __future__ import annotations

import difflib

from vitdc.config import DVC, DataConfig
from vitdc.data.arrays import TORCHVISION_SETS, open_digits, open_torchvision_set
from vitdc.data.dvc import TrackedFolder
from vitdc.data.files import FileSource, Store
from vitdc.data.folder import Folder
from vitdc.data.s3 import SCHEME, Bucket
from vitdc.data.sources import Source
from vitdc.errors import InputError

DIGITS, FOLDER = "digits", "folder"


def open_source(config: DataConfig) -> Source:
    """Find the source that `config.source` names and list its images.

    Raises:
        InputError: The source is unknown, or it is not there, empty or ambiguous.
    """
    store = open_store(config)
    if store is not None:
        return FileSource(store, config)
    check_no_files(config, config.source)
    if config.source == DIGITS:
        return open_digits(config)
    return open_torchvision_set(config)


def open_store(config: DataConfig) -> Store | None:
    """The store of image files that `config.source` names; none for sets that come as arrays.

    Raises:
        InputError: The source is unknown, or its address is not valid.
    """
    name = config.source
    if name == FOLDER:
        return Folder.open(config.root)
    if name.startswith(SCHEME):
        return Bucket.open(name, endpoint_url=config.endpoint_url)
    if name == DVC:
        return TrackedFolder(config)
    if name == DIGITS or name in TORCHVISION_SETS:
        return None
    raise InputError(_unknown_source(name, valid=(DIGITS, FOLDER, DVC, *TORCHVISION_SETS)))


def check_no_files(config: DataConfig, source: str) -> None:
    """Refuse what only image files have, of a source without any.

    Raises:
        InputError: It is asked for.
    """
    for name in ("labels_file", "split", "copies"):
        if getattr(config, name) != DataConfig.model_fields[name].default:
            raise InputError(
                f"data.{name}: {getattr(config, name)}, but only image files ({FOLDER}, {DVC},"
                f" {SCHEME}...) have it, and data.source is {source}; leave it out"
            )


def _unknown_source(name: str, *, valid: tuple[str, ...]) -> str:
    simplified = {v.lower(): v for v in valid}
    near = difflib.get_close_matches(name.lower().replace("-", ""), simplified, n=1)
    advice = f"did you mean {simplified[near[0]]}? " if near else ""
    return (
        f"data.source: unknown source {name!r}; {advice}valid are {', '.join(valid)} and"
        f" {SCHEME}bucket/prefix"
    )
