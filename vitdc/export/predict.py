"""Print the cluster of image files, with an exported model and without vitdc.

    python predict.py IMAGE...

Needs pixels.py beside it, numpy, pillow (pi-heif for HEIC) and what runs the model beside this
file: onnxruntime for model.onnx, torch for model.pt2, torch, timm and safetensors for
model.safetensors.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def read_images(path, spec):
    """The pages of an image file as (C, H, W) float32 in [0, 1], as the model was trained on."""
    from pixels import Pixels, decode_file, explain

    Image.MAX_IMAGE_PIXELS = None  # max_pixels is the limit
    wanted = Pixels(spec["height"], spec["channels"], **spec["decoding"])
    try:
        images = decode_file(path, wanted).images
    except Exception as error:
        sys.exit(f"{path}: {explain(error, path)}")
    return [image.transpose(2, 0, 1).astype(np.float32) / 255 for image in images]


def load_onnx(path, description):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"images": images}), strict=True))


def load_pt2(path, description):
    import torch

    model = torch.export.load(path).module()

    def run(images):
        return {k: v.detach().numpy() for k, v in model(torch.from_numpy(images)).items()}

    return run


def load_safetensors(path, description):
    import timm
    import torch
    from safetensors.torch import load_file
    from torch.nn import functional

    architecture, tensors = description["architecture"], load_file(path)
    vit = timm.create_model(architecture["name"], **architecture["arguments"]).eval()
    weights = {k.removeprefix("vit."): v for k, v in tensors.items() if k.startswith("vit.")}
    vit.load_state_dict(weights)
    size = tuple(architecture["image_size"])

    @torch.inference_mode()
    def run(images):
        pixels = images = torch.from_numpy(images)
        if pixels.shape[2:] != size:
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        tokens = vit.forward_features((pixels - tensors["mean"]) / tensors["std"])
        embedding = vit.forward_head(tokens, pre_logits=True)
        if "adapter.weight" in tensors:  # of a frozen backbone
            shift = functional.linear(embedding, tensors["adapter.weight"], tensors["adapter.bias"])
            embedding = embedding + shift * embedding.shape[1] ** -0.5
        if description["embedding_has_length_1"]:
            embedding = functional.normalize(embedding, dim=1)
        distances = torch.linalg.vector_norm(embedding[:, None] - tensors["centroids"], dim=2)
        thumbnails = tensors["rows"] @ images @ tensors["columns"].T
        found = torch.cat([embedding, thumbnails.permute(0, 2, 3, 1).flatten(1)], dim=1)
        farness = distances
        if description["clusters_are_of_a_manifold"]:  # then an image goes where it is most typical
            deviations = (found[:, None] - tensors["typical"]) @ tensors["whitening"]
            farness = torch.linalg.vector_norm(deviations, dim=2)
        cluster = farness.argmin(dim=1)
        deviation = (found - tensors["typical"][cluster]) @ tensors["whitening"]
        atypicality = torch.linalg.vector_norm(deviation, dim=1)
        return {
            "embedding": embedding.numpy(),
            "cluster": cluster.numpy(),
            "distances": distances.numpy(),
            "atypicality": atypicality.numpy(),
        }

    return run


LOADERS = {"model.onnx": load_onnx, "model.pt2": load_pt2, "model.safetensors": load_safetensors}


class Lines:
    """Standard output, with lines that end with LF."""

    def write(self, line):
        sys.stdout.write(line.removesuffix("\r\n") + "\n")


def main(paths):
    here = Path(__file__).parent
    description = json.loads((here / "preprocessing.json").read_text(encoding="utf-8"))
    file = description["model"]
    run = LOADERS[file](here / file, description)
    limit = description["unsure_beyond_atypicality"]
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    table = csv.writer(Lines())  # which ends lines with CR LF, so it quotes both of them in names
    table.writerow(("image", "cluster", "name", "distance", "unsure"))
    for path in paths:
        images = read_images(path, description["input"])
        for page, image in enumerate(images):
            found = run(image[None])
            cluster = found["cluster"][0]
            unsure = limit is not None and found["atypicality"][0] > limit
            name, distance = description["cluster_names"][cluster], found["distances"][0, cluster]
            shown = path if len(images) == 1 else f"{path}#{page + 1}"
            row = (shown, cluster, name, f"{distance:.4f}", "true" if unsure else "false")
            table.writerow(row)


if __name__ == "__main__":
    main(sys.argv[1:])
