"""Every knob of vitdc: one pydantic model per section of `params.yaml`.

A section's name is the same in `params.yaml`, in DVC's `params:`, in the step signatures of
`steps.py` and in the Kubeflow pipeline. A knob is documented once, under its field; the command
`vitdc params` prints these texts. Numbers may arrive as doubles (Kubeflow sends every number as
one): 32.0 is a valid integer, 32.5 is not.
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from vitdc.errors import InputError


def _refuse_bool(value: Any) -> Any:
    """Keep YAML's `true` from passing for the number 1."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


Number = BeforeValidator(_refuse_bool)
PositiveInt = Annotated[int, Number, Field(ge=1)]
NonNegativeInt = Annotated[int, Number, Field(ge=0)]
PositiveFloat = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Number, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Number, Field(allow_inf_nan=False)]
NonEmpty = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Number, Field(ge=0, lt=1)]
Share = Annotated[float, Number, Field(gt=0, le=1)]
SeveralClusters = Annotated[int, Number, Field(ge=2)]


DVC = "dvc"  # as data.source
FROZEN = ("none", "head")  # values of model.trainable that leave the whole backbone as it is

# Where the data lie and how fast they are read: no result depends on these, given the content.
NOT_IDENTIFYING = (
    *("data.root", "data.endpoint_url", "data.repo", "data.rev", "data.path"),
    *("data.labels_file", "data.num_workers"),
)


class Section(BaseModel):
    """A section of `params.yaml`. Unknown keys are errors that name the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def section_name(cls) -> str:
        """The section's name in `params.yaml`, e.g. "pretraining" for PretrainingConfig."""
        return cls.__name__.removesuffix("Config").lower()

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Check `values` against the section's fields.

        Args:
            values: Plain mapping, e.g. one section of a YAML file or a Kubeflow dict parameter.
            where: Named in the error message: the file or the command line option.

        Raises:
            InputError: A key is unknown or a value has a wrong type or range; all are named.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(_describe(cls, problem) for problem in error.errors())
            raise InputError(f"{where}: {problems}") from None


class DataConfig(Section):
    """Where the images come from and how they are prepared."""

    source: str = "digits"
    """`digits` (scikit-learn's 1,797 digits, offline), a torchvision set by its class name
    (CIFAR10, CIFAR100, FashionMNIST, MNIST, STL10, SVHN), `folder` (your own images under
    `data.root`), `s3://bucket/prefix` or `dvc` (images that DVC tracks under `data.path`)."""
    root: str | None = None
    """Folder to read from. With `folder`: your images; class sub-folders become labels, a flat
    folder has none. With a torchvision set: where its files are or go; null means `data`."""
    endpoint_url: str | None = None
    """S3-compatible store for an `s3://` source; null means AWS itself."""
    repo: NonEmpty | None = None
    """With `dvc`: URL or local path of a Git repository with DVC in it; null means the one that the
    command runs in. What DVC has cached in a local one is read from there, all else from its DVC
    remote."""
    rev: NonEmpty | None = None
    """With `dvc`: branch, tag or commit. Null means the default branch of a URL and the last commit
    (HEAD) of a local repository; what is not committed is never read."""
    path: Annotated[NonEmpty | None, Field(validate_default=True)] = None
    """With `dvc`: the folder of images, relative to the root of the repository: one that DVC tracks
    or one inside it. Class sub-folders become labels, a flat folder has none."""
    labels_file: Annotated[NonEmpty, AfterValidator(posixpath.normpath)] | None = None
    """With image files: a CSV file `file,label[,split][,group]` that gives the labels instead of
    the folders, and perhaps the split and what must stay together on one side of it. It lies in
    `data.root`, under the S3 prefix or in `data.path`, and its path is relative to that; for a
    folder it may be an absolute path. Paths in it are relative to the CSV file."""
    image_size: PositiveInt | None = None
    """Side in pixels of the square that images are brought to. Null keeps a set's own size;
    `folder`, `s3://` and `dvc` need a number."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How an image that is not square becomes one: `crop` keeps the middle, `pad` keeps all and
    fills up with `background`, `stretch` keeps all and distorts it."""
    background: str = "auto"
    """Colour behind transparent pixels and around padded images: a name (white), #rrggbb or
    rgb(r, g, b). `auto` is white behind an image, or black where it would vanish on white (white
    logos), and black around an image without transparency."""
    pixel_range: tuple[Finite, Finite] | None = None
    """The values that are black and white in greyscale images of more than 8 bits, e.g. [0, 4095]
    for a camera of 12 bits whose files have 16. Null means what the file says (the depth and the
    tags of a TIFF, the maximum of a PGM), else all 16 bits; images of 32 bits or of floats that
    say nothing are then unreadable."""
    pages: Literal["first", "all"] = "first"
    """Of a file with several pages or frames: the `first`, or `all`, each an image (`scan.tif#1`,
    `scan.tif#2`). The pages of a file stay in one split; `max_train` and `max_test` count files."""
    channels: Annotated[Literal[1, 3], Number] | None = None
    """1 converts to greyscale, 3 to RGB; null keeps a set's own, and means 3 for `folder`, `s3://`
    and `dvc`."""
    labels: Literal["auto", "full", "partial", "none"] = "auto"
    """Which labels are trained on. `auto` takes what the training images have; `full` needs one for
    every image; `partial` trains on the known ones, and clusters stand in for the others (in a
    folder, images beside the class folders have no label); `none`
    trains on no label. Labels that are not trained on still score."""
    label_fraction: Share | None = None
    """Share of the known labels that is trained on, stratified by label; null keeps all. The others
    only score."""
    split: Literal["auto", "folders", "random"] = "auto"
    """Where the split of image files comes from. `auto` takes the column of `labels_file`, else
    folders that are called like splits (`train`, `seg_test`, `val2017`), and holds images out at
    random where there are none, or nothing if `test_fraction` is 0; `folders` insists on such
    folders; `random` draws from all images. Validation images are tested with where there is no
    test folder, else trained on."""
    test_fraction: Fraction = 0.2
    """Share held out for testing, stratified by label, where a source has no split of its own;
    0 holds nothing out."""
    copies: Literal["together", "anywhere"] = "together"
    """Where copies of an image go, identical or nearly so, when a split of image files is drawn:
    `together` to one side of it, `anywhere` as chance has it. They are counted either way."""
    max_train: PositiveInt | None = None
    """Keep at most this many training images, stratified by label; null keeps all."""
    max_test: PositiveInt | None = None
    """Keep at most this many test images, stratified by label; null keeps all."""
    max_unreadable: NonNegativeInt = 0
    """How many unreadable images may be skipped (and are counted) before `prepare` refuses."""
    max_pixels: PositiveInt = 64_000_000
    """An image with more pixels counts as a decompression bomb and is unreadable. The model keeps
    this, `fit`, `background`, `pixel_range` and `pages`, and reads new images in the same way."""
    keep_decoded: bool = True
    """`false` keeps no decoded copy of the images: with `folder` and `s3://`, every step reads them
    from their files again. For more images than the disk holds, and a frozen backbone, which sees
    every image once."""
    num_workers: PositiveInt | None = None
    """Processes that decode images; null means one per CPU core. The result does not depend on
    it."""
    seed: NonNegativeInt = 0
    """Seed of the split and of the subsets. Separate from the top-level `seed`, so that runs with
    different seeds are scored on the same test images."""

    @field_validator("keep_decoded")
    @classmethod
    def _can_be_read_again(cls, value: bool, info: ValidationInfo) -> bool:
        source = info.data.get("source", "")  # missing if it is wrong itself
        if not value and source and source != "folder" and not source.startswith("s3://"):
            raise ValueError(f"must be true: images of {source} cannot be read one by one")
        if not value and info.data.get("pages") == "all":
            raise ValueError("must be true with pages: all, of which a file is read as a whole")
        return value

    @property
    def decoding(self) -> dict[str, Any]:
        """What decides which image files are accepted, and what becomes of them."""
        return self.model_dump(include={"fit", "background", "pixel_range", "pages", "max_pixels"})

    @field_validator("background")
    @classmethod
    def _is_a_colour(cls, value: str) -> str:
        if value == "auto":
            return value
        from PIL import ImageColor

        try:
            opaque = len(ImageColor.getrgb(value)) == 3
        except ValueError:
            opaque = False
        if not opaque:
            raise ValueError("no colour; valid are e.g. auto, white, black, #808080")
        return value

    @field_validator("pixel_range")
    @classmethod
    def _has_black_before_white(
        cls, value: tuple[float, float] | None
    ) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("the value of black comes first, e.g. [0, 4095]")
        return value

    @field_validator("label_fraction")
    @classmethod
    def _keeps_some_labels(cls, value: float | None, info: ValidationInfo) -> float | None:
        labels = info.data.get("labels")
        if value is not None and labels in ("full", "none"):
            raise ValueError(f"contradicts labels: {labels}; with a fraction they are partial")
        return value

    @field_validator("repo", "rev", "path")
    @classmethod
    def _belongs_to_dvc(cls, value: str | None, info: ValidationInfo) -> str | None:
        source = info.data.get("source")  # missing if it is wrong itself
        if value is not None and source not in (None, DVC):
            raise ValueError(f"only source: {DVC} reads it, and the source is {source}")
        if value is None and info.field_name == "path" and source == DVC:
            raise ValueError(f"needed with source: {DVC}, the folder of images that DVC tracks")
        return value


class ModelConfig(Section):
    """The backbone, any timm model that embeds images, and what to change in it."""

    name: NonEmpty | None = None
    """timm's name, e.g. `vit_small_patch14_reg4_dinov2.lvd142m`; docs/backbones.md compares some.
    Null means that of the pretrained weights where they say it (`local-dir:`, results), else
    `vit_tiny_patch16_224`. The fields below that shape the architecture are for those who train
    from scratch; one that an architecture does not have is refused."""
    image_size: PositiveInt | None = None
    """Side of the images the model sees; other sizes are resized to it in the batch. Null means
    the size of the prepared images, and with pretrained weights the size these are made for."""
    patch_size: PositiveInt | None = None
    """Side P of a patch (eq. 1); must divide the image size. Null keeps timm's."""
    embed_dim: PositiveInt | None = None
    """Width D of the tokens and of the embedding; null keeps timm's."""
    depth: PositiveInt | None = None
    """Number L of encoder layers (eq. 2-3); null keeps timm's."""
    num_heads: PositiveInt | None = None
    """Attention heads per layer; must divide the width. Null keeps timm's."""
    pooling: Literal["token", "mean"] | None = None
    """The image representation: the class `token` (the paper's) or the `mean` of the patches. Null
    means that of pretrained weights, which know no other, and the mean from scratch."""
    normalize: bool = True
    """L2-normalise embeddings. `false` is the paper's letter; the clustering loss can then be
    lowered by merely shrinking the embeddings."""
    drop_path: Fraction = 0.0
    """Stochastic depth rate of the last layer, rising linearly from 0 at the first; 0 keeps
    timm's, which is 0 for a ViT."""
    pretrained: bool | NonEmpty = False
    """`true` takes timm's weights (downloaded once), `local-dir:FOLDER` a folder that timm has
    saved (config.json and model.safetensors). A path takes a .safetensors file with timm's names,
    or a run of vitdc: a results directory, its `model` or its `checkpoint`. Images are normalised
    and sized as the weights need it, not as the data are."""
    trainable: Annotated[str, Field(pattern=r"^(none|head|last_[1-9][0-9]*|all)$")] | None = None
    """What training changes. `all`: every weight. `last_N`: the last N blocks, the final norm and
    the head. `head`: the head, and a linear adapter between the frozen backbone and the embedding,
    which begins as the identity. `none`: nothing. With `head` and `none` the backbone sees every
    image once, without augmentation, and the rounds train on what it said. Null means `all` from
    scratch and `head` with pretrained weights."""

    @property
    def resolved_trainable(self) -> str:
        """`trainable`, with the default filled in."""
        return self.trainable or ("head" if self.pretrained else "all")


class TrainingConfig(Section):
    """How long and how to train; AdamW with warm-up and cosine decay."""

    epochs: NonNegativeInt = 10
    """Passes over the training images."""
    batch_size: PositiveInt = 128
    """Images per optimizer step."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    final_learning_rate: NonNegativeFloat = 0.0
    """Learning rate that the cosine ends at, as a share of the peak."""
    warmup_epochs: NonNegativeFloat = 1.0
    """Length of the linear warm-up, in epochs."""
    weight_decay: NonNegativeFloat = 0.05
    """AdamW's decoupled decay; biases, norms and position embeddings have none."""
    clip_norm: NonNegativeFloat = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    flip: bool = False
    """Mirror half of the images left to right."""
    shift: Fraction = 0.0
    """Largest random shift, as a share of the image side."""
    rotate: Annotated[float, Number, Field(ge=0, le=180)] = 0.0
    """Largest random rotation, in degrees."""
    zoom: Fraction = 0.0
    """Largest random change of scale: 0.1 means 0.9 to 1.1."""
    jitter: Fraction = 0.0
    """Largest random change of brightness and of contrast: 0.2 means 0.8 to 1.2."""


class TargetTrainingConfig(TrainingConfig):
    """A training towards targets: labels or pseudo-labels."""

    label_smoothing: Fraction = 0.0
    """Share of the target spread evenly over all classes, in training only."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of timm's mixup; 0 turns it off."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of timm's cutmix; 0 turns it off."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs the cross-entropy of an image by the inverse of the size of its class (or
    of its cluster, where that is the target), so that all count alike however few images they have.
    `pretraining` and `joint` have it each; the joint loss that is compared stays the plain mean."""


class SelfSupervisedConfig(TrainingConfig):
    """The initial training on images alone; it takes more steps than one on labels."""

    epochs: NonNegativeInt = 60
    """Passes over the training images."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate, reached at the end of the warm-up."""
    shift: Fraction = 0.1
    """Largest random shift of a view, as a share of the image side."""
    rotate: Annotated[float, Number, Field(ge=0, le=180)] = 12.0
    """Largest random rotation of a view, in degrees."""
    zoom: Fraction = 0.12
    """Largest random change of a view's scale: 0.1 means 0.9 to 1.1."""
    num_neighbours: NonNegativeInt = 5
    """The second view of an image is one of so many images nearest to it by their pixels, drawn
    anew in every epoch; 0 takes a second view of the image itself (plain SimCLR or VICReg). Pixels
    tell what is near where images are small and aligned; take 0 for photos."""
    temperature: PositiveFloat = 0.2
    """Of SimCLR's loss; lower tells near images apart more strongly."""
    projector_dim: PositiveInt = 128
    """Width of the projector between the embedding and the loss."""


class PretrainingConfig(TargetTrainingConfig):
    """The initial training: cross-entropy on labels (eq. 5), or self-supervision without any."""

    objective: Literal["auto", "supervised", "simclr", "vicreg"] = "auto"
    """`supervised` is cross-entropy on the labels. `simclr` and `vicreg` train on no label: two
    views of what is alike are to agree. `auto` is `supervised` where all labels are known.
    With some or none it is `simclr` for fresh weights; pretrained ones are trained on the labels
    that are known, and kept as they are without any."""
    self_supervised: SelfSupervisedConfig = SelfSupervisedConfig()
    """How `simclr` and `vicreg` train; the knobs beside this section are of `supervised`. For one
    run: `-S pretraining.self_supervised.epochs=100`."""


class JointConfig(TargetTrainingConfig):
    """The retraining of every round with the joint loss (eq. 8)."""

    gamma: NonNegativeFloat = 0.1
    """Weight of the clustering loss; 0 is the control without it."""
    confident: Share | None = None
    """Share of a cluster's images without a label that are trained to be in it, those nearest to
    its centroid; the others are only pulled towards it (gamma). Null means 0.5, and 1 where the
    clusters were found on a manifold (`clustering.space`), of which the centroid knows nothing."""


class ClusteringConfig(Section):
    """k-means on the training embeddings (faiss), or a Gaussian mixture on a manifold of them."""

    num_clusters: PositiveInt | Literal["auto"] = 10
    """Number k of clusters. `auto` lets round 0 choose it out of `k_range`, without labels, by the
    silhouette and by how well samples of the images agree; later rounds keep it. `vitdc suggest-k`
    shows what it chooses from."""
    k_range: tuple[SeveralClusters, SeveralClusters] = (2, 20)
    """Smallest and largest number of clusters that `num_clusters: auto` tries."""
    space: Literal["auto", "embedding", "manifold"] = "auto"
    """Where the clusters of the training images are found: by k-means in the `embedding`, or on a
    `manifold` of it by UMAP and a Gaussian mixture. `auto` takes the manifold where no label is
    trained on and the model started from fresh weights. Centroids are the clusters' mean
    embeddings either way."""
    manifold_dims: PositiveInt = 10
    """Dimensions of the manifold."""
    manifold_neighbours: Annotated[int, Number, Field(ge=2)] = 30
    """Nearest embeddings that UMAP keeps together; few make many small islands, many blur them."""
    manifold_layouts: PositiveInt = 3
    """Layouts by UMAP, in round 0 only. The clusters of the one that agrees best with the others
    count, because now and then one merges two clusters. Each takes as long as the first: 1 may do
    for very many images."""
    num_iterations: PositiveInt = 50
    """Lloyd iterations per restart."""
    num_restarts: PositiveInt = 10
    """Random starts, of which the best counts; in the embedding only in round 0: later rounds start
    from the centroids of the round before."""
    max_points_per_centroid: PositiveInt | None = None
    """Train on a random subset of this many embeddings per cluster; null trains on all."""
    silhouette_samples: NonNegativeInt = 1000
    """Embeddings the silhouette is estimated on; 0 leaves it out."""

    @field_validator("k_range")
    @classmethod
    def _is_a_range(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] >= value[1]:
            raise ValueError("the smaller number comes first, e.g. [2, 20]")
        return value

    @property
    def resolved_num_clusters(self) -> int:
        """`num_clusters`, where `auto` has become a number."""
        assert self.num_clusters != "auto", "the step `cluster` resolves it"
        return self.num_clusters

    def check_fit(self, *, num_images: int, num_classes: int) -> None:
        """Refuse a number of clusters that the images cannot have, before anything is trained.

        Args:
            num_images: Training images.
            num_classes: Classes that need a cluster of their own (`Dataset.num_own_clusters`).

        Raises:
            InputError: There are too few images, or too few clusters for the classes.
        """
        if num_images < 2:
            raise InputError(
                f"{num_images} training image: clustering compares images, so it needs at least 2;"
                " add images, or hold fewer out (data.test_fraction)"
            )
        if self.num_clusters == "auto":
            self._check_range(num_images, num_classes)
            return
        if self.num_clusters > num_images:
            raise InputError(
                f"clustering.num_clusters: {self.num_clusters} clusters cannot be made of"
                f" {num_images} training images; at most {num_images} are possible, and far fewer"
                " make sense"
            )
        if self.num_clusters < num_classes:
            raise InputError(
                f"clustering.num_clusters: {self.num_clusters} clusters, but the labels, which"
                f" are partial, name {num_classes} classes, and each has a cluster of its"
                f" own; take {num_classes} or more, or data.labels=none"
            )

    def _check_range(self, num_images: int, num_classes: int) -> None:
        smallest, largest = self.k_range
        if num_classes >= largest:
            raise InputError(
                f"clustering.k_range: [{smallest}, {largest}], but the labels, which are partial,"
                f" name {num_classes} classes, and each has a cluster of its own; let it end beyond"
                f" {num_classes}, or take data.labels=none"
            )
        if max(smallest, num_classes) >= num_images:
            raise InputError(
                f"clustering.num_clusters: auto cannot try {max(smallest, num_classes)} clusters"
                f" of {num_images} training images; add images, or take a number"
            )


class ConvergenceConfig(Section):
    """When the rounds stop."""

    epsilon: NonNegativeFloat = 0.01
    """Stop when the joint loss falls by less than this from one round to the next."""
    min_changed: Fraction = 0.0
    """Stop when less than this share of the training images changed cluster before a round, which
    so was trained on the clusters of the one before; 0 leaves the decision to the loss."""
    max_rounds: PositiveInt = 10
    """Stop after this many rounds in any case."""


class EvaluationConfig(Section):
    """The scores, pictures and report of a finished run."""

    pixel_baseline: bool = True
    """Also cluster the raw pixels with k-means, the floor to beat."""
    gallery_size: PositiveInt = 12
    """Pictures per cluster in the gallery."""
    map_points: NonNegativeInt = 1000
    """Images on the 2-D map; 0 leaves the map out."""


class TrackingConfig(Section):
    """Where runs are recorded (MLflow)."""

    enabled: bool = True
    """`false` records nothing."""
    experiment: str = "vitdc"
    """MLflow experiment that the runs belong to."""
    run_name: str | None = None
    """Name of the run; null means one that says what was run."""
    registered_model: Annotated[str, Field(pattern=r"^[^/:@]+$")] | Literal[False] | None = None
    """Name under which the final model is registered in MLflow; null means one after the data
    (`vitdc-digits`, `vitdc-photos-3fa9c1`), false registers none."""


class ComputeConfig(Section):
    """The machine. Results are bit-for-bit the same only for the same device and thread count."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` takes a GPU if there is one; naming a device that is not there is an error."""
    num_threads: PositiveInt = 2
    """CPU threads of torch and faiss. Another number gives other bytes."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the training; `auto` means bfloat16 on GPUs that have it, float32 elsewhere.
    Embeddings and losses that are compared are always computed in float32."""
    embedding_batch_size: PositiveInt = 512
    """Images per batch of the embedding pass."""


def _as_text(value: Any) -> Any:
    """`cpu: 4` is a number in YAML, and a quantity for Kubernetes."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Cores = Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^([0-9]+(\.[0-9]+)?|[0-9]+m)$")]
Bytes = Annotated[
    str, BeforeValidator(_as_text), Field(pattern=r"^[0-9]+(\.[0-9]+)?([KMGTPE]i?)?$")
]
LabelName = Annotated[
    str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=317)
]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]


class TaskResources(Section):
    """What one task of the Kubeflow pipeline asks of the cluster."""

    cpu: Cores = "1"
    """CPU request: cores (`2`, `0.5`) or thousandths (`500m`)."""
    cpu_limit: Cores = "2"
    """CPU limit; give training tasks no fewer cores than `compute.num_threads`."""
    memory: Bytes = "1Gi"
    """Memory request."""
    memory_limit: Bytes = "4Gi"
    """Memory limit; a task that needs more is killed."""
    gpus: NonNegativeInt = 0
    """GPUs; the task then gets `gpu_selector` and `gpu_tolerations`, too."""


class SmallTaskResources(TaskResources):
    """What a task that neither trains nor decodes asks of the cluster."""

    cpu: Cores = "250m"
    cpu_limit: Cores = "1"
    memory: Bytes = "512Mi"
    memory_limit: Bytes = "2Gi"


class Toleration(Section):
    """A taint that a task tolerates, as in a pod's `tolerations`."""

    key: str = "nvidia.com/gpu"
    """Key of the taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """`Exists` tolerates every value of the taint, `Equal` the one that is given."""
    value: str | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """Effect of the taint."""


class ResourcesConfig(Section):
    """The resources of every task of the Kubeflow pipeline."""

    prepare: TaskResources = TaskResources()
    """Decoding the images; more cores decode faster."""
    pretrain: TaskResources = TaskResources()
    """The initial training."""
    embed: TaskResources = TaskResources()
    """The embedding pass of every round."""
    cluster: TaskResources = TaskResources()
    """k-means, which holds all training embeddings in memory."""
    retrain: TaskResources = TaskResources()
    """The training of every round."""
    check: SmallTaskResources = SmallTaskResources()
    """The stopping rule."""
    evaluate: TaskResources = TaskResources()
    """Scores, pictures, report."""
    bookkeeping: SmallTaskResources = SmallTaskResources()
    """The small tasks around the steps: finding the data's version, recording in MLflow."""


class KubernetesConfig(Section):
    """What the Kubeflow pipeline asks of its cluster; compiled into it, not a parameter of it."""

    image: Annotated[str, Field(pattern=r"^\S+$")] | None = None
    """Container image of every task, by digest where one is known; null means the one that
    `make image` builds."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the cluster pulls the image."""
    image_pull_secrets: tuple[ObjectName, ...] = ()
    """Names of Secrets with the image registry's credentials."""
    service_account: ObjectName | None = "vitdc-runner"
    """Service account of the task pods; null means the one that Kubeflow chooses."""
    endpoints: ObjectName | None = "vitdc-endpoints"
    """ConfigMap with MLFLOW_TRACKING_URI, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION; null for none.
    Only the tasks that read images or record get it."""
    s3_secret: ObjectName | None = "vitdc-s3"  # noqa: S105 the name of a Secret
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; null for none."""
    mlflow_secret: ObjectName | None = "vitdc-mlflow"  # noqa: S105 likewise
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; null for none."""
    user: PositiveInt = 10001
    """User and group id of every container; never root."""
    scratch_claim: ObjectName | None = "vitdc-scratch"
    """PersistentVolumeClaim for unfinished training: a task that is tried again continues from it,
    and the end of the run clears it. Null for none, then the task starts anew."""
    data_claim: ObjectName | None = None
    """PersistentVolumeClaim with images for `data.source: folder`, mounted read-write at `/data`
    in the tasks that read images; null for none."""
    shared_memory: Bytes | None = "256Mi"
    """Size of /dev/shm in tasks with worker processes (decoding) or GPUs; null keeps the 64 MB
    of the container runtime."""
    temporary_storage: Bytes = "4Gi"
    """Most that a task may write to /tmp; everything else of its file system is read-only or
    Kubeflow's."""
    retries: Annotated[int, Number, Field(ge=0, le=100)] = 2
    """How often a task is tried again whose pod was lost, say with its node. Kubeflow's default
    (`retryPolicy: OnError`) does not repeat a task that ends with an error or is killed for
    memory."""
    retry_delay: Annotated[int, Number, Field(ge=1, le=600)] = 30
    """Seconds before the first retry; doubled before each further one, up to 10 minutes."""
    caching: bool = True
    """Take results of earlier runs for tasks with the same code, parameters and inputs. Tasks that
    record something always run."""
    timeout_hours: Annotated[float, Number, Field(ge=0.01, le=10_000)] = 72
    """The whole run is stopped after this time."""
    node_selector: dict[LabelName, str] = {}
    """Labels of the nodes that may run the tasks."""
    gpu_resource: str = "nvidia.com/gpu"
    """Kubernetes' name of the GPUs."""
    gpu_selector: dict[LabelName, str] = {}
    """Labels of the nodes that may run GPU tasks, beside `node_selector`."""
    gpu_tolerations: tuple[Toleration, ...] = (Toleration(),)
    """Taints that GPU tasks tolerate."""
    resources: ResourcesConfig = ResourcesConfig()
    """Per task: `-S kubernetes.resources.retrain.gpus=1`."""


class Params(Section):
    """The whole of `params.yaml`."""

    seed: NonNegativeInt = 0
    """Seed of everything random except the data split."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    joint: JointConfig = JointConfig()
    convergence: ConvergenceConfig = ConvergenceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    tracking: TrackingConfig = TrackingConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()

    @model_validator(mode="before")
    @classmethod
    def _empty_sections_are_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {k: {} if v is None and k in cls.section_names() else v for k, v in values.items()}

    @classmethod
    def section_names(cls) -> tuple[str, ...]:
        """Names of the sections, in the order of `params.yaml`."""
        return tuple(name for name in cls.model_fields if name != "seed")

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """Read a parameter file and apply `section.key=value` overrides.

        What is text for a parameter stays the text that is written: DVC writes params.yaml as
        YAML 1.2, where `no` and `1:30` are text; for PyYAML they are false and 90.

        Raises:
            InputError: The file is missing, is not YAML, or a parameter is wrong.
        """
        values = _read_file(path, cls)
        overrides = tuple(overrides)
        for override in overrides:
            _apply_override(values, override, cls)
        where = str(path) + (f" with -S {' -S '.join(overrides)}" if overrides else "")
        return cls.parse(values, where=where)


def _read_file(path: Path, root: type[Section]) -> dict[str, Any]:
    try:
        values = _read_yaml(path.read_text(encoding="utf-8"), root)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such parameter file; run in the repository's root or name one with"
            " --params"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: sections like `data:` are needed, not a {type(values).__name__}")
    return values


def _apply_override(values: dict[str, Any], override: str, root: type[Section]) -> None:
    """Set one `section.key=value` (or `seed=value`) in place."""
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise InputError(f"-S {override}: write it as section.key=value, e.g. -S joint.gamma=0")
    *sections, key = name.split(".")
    annotation: Any = root
    for part in (*sections, key):
        annotation = _inner(annotation, part)
    try:
        value = _read_value(text, annotation)
    except yaml.YAMLError:
        raise InputError(f"-S {override}: {text!r} is not a valid YAML value") from None
    for section in sections:
        inner = values.get(section)
        values[section] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        values = inner
    values[key] = value


def _read_value(text: str, annotation: Any) -> Any:
    """The value of an override: text as it is typed where the parameter is text, else YAML.

    Nothing at all means null. `null` does only where a text has a fixed form: a folder may be
    called so.
    """
    kinds = _kinds(annotation)
    if str not in kinds:
        return _read_yaml(text, annotation)
    if text.lower() in ("true", "false") and (switch := text.lower() == "true") in kinds:
        return switch
    if not text or (text in ("null", "~") and NoneType in kinds and _has_pattern(annotation)):
        return None
    return text


def _read_yaml(text: str, annotation: Any) -> Any:
    """Read YAML; a plain scalar is text where the parameter is text, except for null."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        _keep_text(node, annotation)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _keep_text(node: yaml.Node | None, annotation: Any) -> None:
    """Tag the scalars below a node as text where `annotation` says so."""
    kinds = _kinds(annotation)
    if isinstance(node, yaml.ScalarNode) and str in kinds:
        kind = node.tag.rpartition(":")[2]
        if kind != "null" and not (kind == "bool" and {True, False} & kinds):
            node.tag = "tag:yaml.org,2002:str"
    elif isinstance(node, yaml.MappingNode) and kinds:
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                _keep_text(value, _inner(annotation, key.value))
    elif isinstance(node, yaml.SequenceNode) and kinds:
        for value in node.value:
            _keep_text(value, _inner(annotation, None))


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without what Annotated says of them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [each for member in get_args(annotation) for each in _alternatives(member)]
    return [] if annotation is None else [annotation]


def _kinds(annotation: Any) -> set[Any]:
    """What a parameter may be: types, and the values True and False."""
    kinds: set[Any] = set()
    for each in _alternatives(annotation):
        if each is bool:
            kinds |= {True, False}
        elif get_origin(each) is Literal:
            kinds |= {value for value in get_args(each) if isinstance(value, bool)} | {Literal}
        else:
            kinds.add(get_origin(each) or each)
    return kinds


def _inner(annotation: Any, key: str | None) -> Any:
    """What a key of a section or mapping, or an item of a list, may be; None if nothing knows."""
    for each in _alternatives(annotation):
        if isinstance(each, type) and issubclass(each, Section) and key in each.model_fields:
            return each.model_fields[key].annotation
        if get_origin(each) is dict and key is not None:
            return get_args(each)[1]
        if get_origin(each) is tuple and key is None:
            return get_args(each)[0]
    return None


def _has_pattern(annotation: Any) -> bool:
    """Whether a text may not be any text."""
    if get_origin(annotation) in (Union, UnionType):
        return any(_has_pattern(member) for member in get_args(annotation))
    metadata = getattr(annotation, "__metadata__", ())
    return any(hasattr(part, "pattern") for field in metadata for part in field.metadata)


def _describe(root: type[Section], problem: Any) -> str:
    """One pydantic problem in the user's words: which parameter, what is wrong, what is valid."""
    location = [str(part) for part in problem["loc"]]
    section, names = root, []
    for part in location:
        field = section.model_fields.get(part)
        names.append(part)
        if field is None:
            break
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            break  # below a field pydantic names the members of a union
        section = field.annotation
    name = ".".join(names) or "parameters"
    if problem["type"] == "extra_forbidden":
        return f"unknown parameter {name}; {_suggest(root, name)}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = problem["input"]
    shown = "" if isinstance(value, Mapping) else f" (got {value!r})"
    return f"{name}: {message}{shown}"


def _suggest(root: type[Section], name: str) -> str:
    """The nearest valid name, or all of the section's where none is near."""
    valid = _parameter_names(root)
    parent, _, key = name.rpartition(".")
    siblings = {v.rpartition(".")[2]: v for v in valid if v.rpartition(".")[0] == parent}
    near = [siblings[k] for k in difflib.get_close_matches(key, siblings, n=1, cutoff=0.7)]
    near += [v for v in valid if v.rpartition(".")[2] == key]
    near += difflib.get_close_matches(name, valid, n=1, cutoff=0.85)
    if near:
        return f"did you mean {near[0]}?"
    return "valid are " + ", ".join(siblings.values())


def _parameter_names(root: type[Section], prefix: str = "") -> list[str]:
    names = []
    for key, field in root.model_fields.items():
        names.append(prefix + key)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            names.extend(_parameter_names(field.annotation, f"{prefix}{key}."))
    return names
