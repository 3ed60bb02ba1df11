"""The images behind the `prepare` step: from wherever they are to one prepared Dataset.

opening     which source a name means
sources     what every source looks like
arrays      sources that come as arrays: scikit-learn's digits, torchvision's sets
files       sources that come as image files: labels from the layout, split, decoding
layout      what the folders around images mean, by their names
table       labels, splits and groups of images from a CSV file
given       sources that a program hands over: arrays, tensors, torch Datasets
folder, s3, dvc
            where image files can lie
fetching    files that come over a network
pixels      one image file -> pixels
decoding    the same for many files, over all cores
labels      which labels may be trained on
copies      images that show the same picture
sampling    stratified, seeded split and subset
version     what changes when the images behind a configuration do
streaming   images that are decoded again whenever they are read
statistics  mean, standard deviation, oddities and content hash, streaming
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitdc.artifacts import DatasetWriter
    from vitdc.config import DataConfig
    from vitdc.data.sources import Batch, Source

# What says where the images lie or how they are read, but not what they are.
NOT_CONTENT = {
    *("root", "endpoint_url", "repo", "rev", "path", "labels_file"),
    *("num_workers", "max_unreadable", "keep_decoded"),
}


def write_dataset(
    config: DataConfig, *, output: Path, on_listed: Callable[[Source], None] | None = None
) -> None:
    """Read the images that `config` names and write them as a Dataset artifact.

    Images stream: memory holds a few chunks of them, whatever their number, except for
    torchvision sets, which torchvision loads a split at a time. Image files are decoded in
    processes of their own.

    Args:
        config: The `data` section.
        output: Directory of the artifact; replaced if it exists, untouched if anything fails.
        on_listed: Called with the source, before any image file is decoded.

    Raises:
        InputError: The source is unknown, not there, empty or ambiguous, or has more unreadable
            images than allowed; or `data.labels` asks for labels that are not there; or the
            images do not fit on the disk.
    """
    # Imported here, because every decoding process imports this package and needs none of it.
    from vitdc.data.opening import open_source
    from vitdc.estimate import check_room

    source = open_source(config)
    if source.train_labels is not None:
        check_room(
            output,
            source.image_shape,
            num_images=len(source.train_labels),
            keep_decoded=config.keep_decoded,
        )
    if on_listed:
        on_listed(source)
    write_source(source, config, name=config.source, output=output)


def write_source(source: Source, config: DataConfig, *, name: str, output: Path) -> None:
    """Write the images of an opened source as a Dataset artifact.

    Args:
        source: Streamed once.
        config: The `data` section it was opened with.
        name: Of the source.
        output: As of `write_dataset`.
    """
    from vitdc.artifacts import writing_dataset
    from vitdc.data.files import FileSource
    from vitdc.data.labels import KnownLabels
    from vitdc.data.streaming import located

    if source.train_labels is not None:
        KnownLabels(config).check(source.train_labels)
    made_by = {"step": "prepare", "data": config.model_dump(exclude=NOT_CONTENT)}
    with writing_dataset(
        output,
        made_by,
        image_shape=source.image_shape,
        files=None if config.keep_decoded else located(config),
    ) as dataset:
        about = _write(source.batches(), dataset, source, config)
        if isinstance(source, FileSource):
            written = source.find_copies([split.thumbnails for split in dataset.written()])
            if source.redraw(written):
                with dataset.rewriting() as before:
                    batches = written.batches([split.images for split in before])
                    about = _write(batches, dataset, source, config)
            about["copies"] = written.counts()
        dataset.describe(
            name=name,
            class_names=source.class_names,
            num_unreadable=source.num_unreadable,
            origin=source.origin,
            decoding=config.decoding,
            **about,
        )


def _write(
    batches: Generator[Batch], dataset: DatasetWriter, source: Source, config: DataConfig
) -> dict[str, Any]:
    """Write all images; returns what is known of them when the last one is there."""
    from vitdc.data.labels import KnownLabels
    from vitdc.data.statistics import ContentHash, Oddities, PixelStatistics, histograms

    statistics = PixelStatistics(source.image_shape[2])
    content, oddities = ContentHash(source.image_shape), Oddities()
    known = KnownLabels(config)
    with closing(batches):
        for batch in batches:
            dataset.append(batch.split, names=batch.names, labels=batch.labels, images=batch.images)
            content.update(batch.split, batch.images, batch.labels)
            levels = histograms(batch.images)
            oddities.update(batch.names, levels)
            if batch.split == "train":
                statistics.update(levels)
                known.update(batch.names, batch.labels)
    mean, std = statistics.mean_std()
    return {
        "mean": mean,
        "std": std,
        "content_hash": content.hexdigest(source.class_names),
        "oddities": oddities.found(),
        "known": known.choose(),
    }
