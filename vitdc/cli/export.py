"""`vitdc export`: a trained model for programs that have no vitdc."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitdc.cli.options import names_option

if TYPE_CHECKING:
    from vitdc.export import Export

FORMATS = ("onnx", "pt2", "safetensors")


@click.command("export")
@click.argument("model")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    required=True,
    help="onnx: for onnxruntime and other engines (in a checkout: pip install '.[onnx]')."
    " pt2: a torch.export archive, for torch alone; it takes the place of"
    " TorchScript, which torch has given up."
    " safetensors: the weights, for timm.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Directory for the model, preprocessing.json and predict.py; an earlier export there is"
    " replaced.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Check the export on these images: a folder, an image file or a prepared data set"
    " (`vitdc prepare`). Without it, 64 random images with the brightness and contrast of the"
    " training images are taken.",
)
@names_option
def command(
    model: str, format_: str, output: Path, images: Path | None, names: Path | None
) -> None:
    """Write a model as ONNX, as a torch.export archive or as safetensors.

    MODEL is a results directory, a model directory (checkpoint/ and clustering/), or a model of
    MLflow: models:/NAME@ALIAS or models:/NAME/VERSION.

    The exported model takes images (N, C, H, W) of floats in [0, 1], N being any number, and gives
    the embedding, the cluster, the distances to all centroids, and how atypical the image is of
    its cluster. Normalisation is part of it; all else that turns a file into its input is in
    preprocessing.json, with the names of the clusters and the limit of `unsure`. predict.py beside
    it is a short program that does all this without vitdc.

    Before the command ends well, the written file was loaded and has given what the original gives,
    within 1e-4, in batches of several sizes.
    """
    from vitdc.config import ComputeConfig
    from vitdc.export import export_model, read_images
    from vitdc.inference import find_model
    from vitdc.prediction import Predictor

    found = find_model(model, names=names)
    predictor = Predictor.load(found.directory, ComputeConfig(device="cpu"))
    clusters = range(predictor.num_clusters)
    exported = export_model(
        predictor,
        format=format_,
        output=output,
        images=None if images is None else read_images(images, predictor.checkpoint),
        cluster_names={i: found.annotations.name_of(i) for i in clusters}
        if found.annotations
        else None,
    )
    click.echo(_describe(exported, given=images is not None))


def _describe(exported: Export, *, given: bool) -> str:
    size = exported.file.stat().st_size / 2**20
    lines = [f"{exported.file}: {size:.1f} MB, with preprocessing.json and predict.py beside it"]
    found = exported.difference
    kind = "of your" if given else "random"
    advice = "" if given else " (--images checks on real ones)"
    lines.append(
        f"checked on {found.num_images} {kind} images{advice}: the largest difference from the"
        f" original is {found.largest:.1e}"
    )
    return "\n".join(lines)
