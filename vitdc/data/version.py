"""Which version of its images a configuration stands for, found out without reading them.

A configuration names places, and what lies there may change: a branch moves on, a bucket grows. A
pipeline that runs again and again pins its configuration first, and prepares the images again only
if their version is another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

from vitdc.config import DataConfig
from vitdc.data.dvc import TrackedFolder
from vitdc.data.files import check_encoding, select_images
from vitdc.data.folder import Folder, file_state
from vitdc.data.opening import open_store
from vitdc.data.s3 import Bucket


class Pinned(NamedTuple):
    """A configuration that does not change its meaning, as far as it can be told not to.

    Attributes:
        config: With exact references instead of names: of `dvc`, the commit instead of a branch.
        version: Changes when the images do: of `dvc`, the hash of the folder, which another commit
            may have too; of a folder or a bucket, a hash over the names, sizes and times or ETags
            of its images. Empty for sets that never change.
    """

    config: DataConfig
    version: str


def pin(config: DataConfig) -> Pinned:
    """Find out what `config` stands for at this moment.

    Raises:
        InputError: The source is unknown, not there or empty.
    """
    store = open_store(config)
    if store is None:
        return Pinned(config, "")
    if isinstance(store, TrackedFolder):
        revision = store.revision()
        return Pinned(config.model_copy(update={"rev": revision.commit}), revision.content_hash)
    assert isinstance(store, Folder | Bucket)
    states = store.states()
    if (table := config.labels_file) and table not in states and isinstance(store, Folder):
        states[table] = file_state(store.path(table))
    return Pinned(config, _listing_hash(states, store.location, table))


def _listing_hash(states: Mapping[str, str], location: str, table: str | None) -> str:
    """SHA-256 over name and state of every image and of the table; other files do not count."""
    listing = hashlib.sha256()
    names = select_images((name for name in states if name != table), location)
    if table:
        names.append(table)
    check_encoding(names, location)
    for name in names:
        listing.update(json.dumps([name, states.get(name)]).encode() + b"\n")
    return listing.hexdigest()
