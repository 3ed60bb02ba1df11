"""`write_dataset`: one function from the `data` section to a Dataset artifact."""

from __future__ import annotations

import difflib
from contextlib import closing
from pathlib import Path
from typing import Any

from vitdc.artifacts import writing_dataset
from vitdc.config import DataConfig
from vitdc.data.sources import Source
from vitdc.data.statistics import ContentHash, PixelStatistics
from vitdc.errors import InputError

FOLDER, S3_SCHEME, DIGITS = "folder", "s3://", "digits"
# What says where the images lie or how they are read, but not what they are.
NOT_CONTENT = {"root", "endpoint_url", "num_workers", "max_unreadable"}


def write_dataset(config: DataConfig, *, output: Path) -> None:
    """Read the images that `config` names and write them as a Dataset artifact.

    Images stream: memory holds a few chunks of them, whatever their number, except for
    torchvision sets, which torchvision loads a split at a time.

    Args:
        config: The `data` section.
        output: Directory of the artifact; replaced if it exists, untouched if anything fails.

    Raises:
        InputError: The source is unknown, not there, empty or ambiguous, or has more unreadable
            images than allowed.
    """
    source = open_source(config)
    statistics = PixelStatistics(source.image_shape[2])
    content = ContentHash(source.image_shape)
    with (
        writing_dataset(output, _made_by(config), image_shape=source.image_shape) as dataset,
        closing(source.batches()) as batches,
    ):
        for batch in batches:
            dataset.append(batch.split, names=batch.names, labels=batch.labels, images=batch.images)
            content.update(batch.split, batch.images, batch.labels)
            if batch.split == "train":
                statistics.update(batch.images)
        mean, std = statistics.mean_std()
        dataset.describe(
            name=config.source,
            class_names=source.class_names,
            mean=mean,
            std=std,
            content_hash=content.hexdigest(source.class_names),
            num_unreadable=source.num_unreadable,
        )


def open_source(config: DataConfig) -> Source:
    """Find the source that `config.source` names and list its images.

    Raises:
        InputError: As for `write_dataset`.
    """
    from vitdc.data.arrays import TORCHVISION_SETS, open_digits, open_torchvision_set
    from vitdc.data.files import FileSource

    name = config.source
    if name == DIGITS:
        return open_digits(config)
    if name in TORCHVISION_SETS:
        return open_torchvision_set(config)
    if name == FOLDER:
        from vitdc.data.folder import Folder

        return FileSource(Folder.open(config.root), config)
    if name.startswith(S3_SCHEME):
        from vitdc.data.s3 import Bucket

        return FileSource(Bucket.open(name, endpoint_url=config.endpoint_url), config)
    raise InputError(_unknown_source(name, (DIGITS, FOLDER, *TORCHVISION_SETS)))


def _unknown_source(name: str, valid: tuple[str, ...]) -> str:
    simplified = {v.lower(): v for v in valid}
    near = difflib.get_close_matches(name.lower().replace("-", ""), simplified, n=1)
    advice = f"did you mean {simplified[near[0]]}? " if near else ""
    return (
        f"data.source: unknown source {name!r}; {advice}valid are {', '.join(valid)} and"
        " s3://bucket/prefix"
    )


def _made_by(config: DataConfig) -> dict[str, Any]:
    return {"step": "prepare", "data": config.model_dump(exclude=NOT_CONTENT)}
