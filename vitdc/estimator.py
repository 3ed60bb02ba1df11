"""The whole method as a scikit-learn estimator, for notebooks and programs.

It runs the steps of `vitdc.steps` and the rounds of `vitdc.loop` on artifacts in a working
directory, so the same images, parameters and seed give the same numbers as `vitdc run`, to the
byte.
"""

from __future__ import annotations

import inspect
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from vitdc import artifacts, loop, metrics, steps, summary
from vitdc.artifacts import (
    Checkpoint,
    Clustering,
    Dataset,
    Embeddings,
    Evaluation,
    Fit,
    Round,
    RoundPaths,
    RoundRow,
    SplitClustering,
)
from vitdc.config import DataConfig, Params, TrainingConfig
from vitdc.data import write_dataset, write_source
from vitdc.data.files import stream_images
from vitdc.data.given import NAME, GivenSource, Target, encode_labels, open_given
from vitdc.data.opening import check_no_files, open_store
from vitdc.data.s3 import SCHEME
from vitdc.device import resolve_device
from vitdc.errors import InputError
from vitdc.evaluation import Findings, complete_rows
from vitdc.model import load_model
from vitdc.prediction import Prediction, Predictor, find_model_directory
from vitdc.progress import showing_progress
from vitdc.typicality import Typicality

KNOBS = {
    "num_clusters": ("clustering.num_clusters",),
    "gamma": ("joint.gamma",),
    "epsilon": ("convergence.epsilon",),
    "max_rounds": ("convergence.max_rounds",),
    "epochs": ("pretraining.epochs", "pretraining.self_supervised.epochs"),
    "batch_size": (
        "pretraining.batch_size",
        "pretraining.self_supervised.batch_size",
        "joint.batch_size",
    ),
    "learning_rate": (
        "pretraining.learning_rate",
        "pretraining.self_supervised.learning_rate",
    ),
    "round_epochs": ("joint.epochs",),
    "round_learning_rate": ("joint.learning_rate",),
    "image_size": ("data.image_size",),
    "test_fraction": ("data.test_fraction",),
    "patch_size": ("model.patch_size",),
    "embed_dim": ("model.embed_dim",),
    "depth": ("model.depth",),
    "num_heads": ("model.num_heads",),
    "device": ("compute.device",),
    "num_threads": ("compute.num_threads",),
}
# In a program, all images that are given are trained on unless some are asked to be held out.
DEFAULTS = {"data": {"test_fraction": 0}}
PLACE = (
    "source",
    "root",
    "repo",
    "rev",
    "path",
)  # of `data`: where images lie; they are given here
USED = (
    "data",
    "model",
    "pretraining",
    "clustering",
    "joint",
    "convergence",
    "evaluation",
    "compute",
)


class DeepClustering(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    ClusterMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Deep clustering of images: a ViT is trained, its embeddings clustered, over several rounds.

    `fit(images, labels)` trains on labels, `fit(images)` on none. Where only some are known (the
    others -1), the first clusters are the classes, in their order. `predict` gives clusters,
    `transform` embeddings, `distances` the distances to all centroids and `assign` everything about
    new images at once.

    Images are an array (N, H, W) or (N, H, W, C), a tensor (N, C, H, W), a list of images or a
    torch Dataset of images or of pairs (image, class index), of uint8 or of floats in [0, 1]; or
    the path of a folder of image files, whose sub-folders are the classes, or an S3 address
    `s3://bucket/prefix`. The module `vitdc.data.given` has the details. Image files are decoded in
    processes of their own, which do not run the calling script again.

    Nothing is recorded in MLflow. Files of a working directory are removed after `fit`, unless
    `directory` names one to keep.

    Args:
        {knobs}
        random_state: Seed of everything random, an integer or a RandomState. Default: `seed` of
            `params` (0), so that equal calls give equal results.
        params: All parameters: a dict in the form of `params.yaml`, or the path of such a file.
            What is given above counts more. Of its section `data`, only image_size, channels, fit,
            background, test_fraction and seed apply to images that are not files (and pixel_range
            to Pillow images).
        directory: Where to work. What `vitdc run --output` writes is kept there, the report
            included, and a fit that was interrupted continues. None works in a temporary one.
        verbose: 0 is silent; 1 shows progress bars, a line per step and the table of rounds.

    Attributes:
        labels_: (N,) cluster of every image that was given to `fit`, in order; of a folder, in
            the order of `image_names_`.
        cluster_centers_: (K, D) float32, in the space of the embeddings.
        image_shape_: (H, W, C) of the images as the model gets them.
        image_names_: (N,) relative paths of files, or the numbers of images that have no name.
        classes_: The labels there were, in the order of the head's outputs.
        rounds_: A dict per round, 0 first: l and its parts, scores, verdict; `pandas.DataFrame`
            makes a table of them.
        history_: A dict per epoch of every training: round, loss and its parts, learning rate.
        best_round_: The round with the lowest l, whose model this is.
        stop_reason_: Why the rounds stopped: "converged", "loss-rose" or "max-rounds".
        n_iter_: Number of rounds.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from vitdc import DeepClustering
        >>> digits = load_digits()
        >>> model = DeepClustering(10, patch_size=2, embed_dim=64, depth=2, num_heads=4)
        >>> model.fit(digits.images / 16, digits.target)
        >>> model.predict(digits.images[:5] / 16)
    """

    def __init__(
        self,
        num_clusters: int | Literal["auto"] | None = None,
        *,
        gamma: float | None = None,
        epsilon: float | None = None,
        max_rounds: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        round_epochs: int | None = None,
        round_learning_rate: float | None = None,
        image_size: int | None = None,
        test_fraction: float | None = None,
        patch_size: int | None = None,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        device: str | None = None,
        num_threads: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        params: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        directory: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        self.num_clusters = num_clusters
        self.gamma = gamma
        self.epsilon = epsilon
        self.max_rounds = max_rounds
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.round_epochs = round_epochs
        self.round_learning_rate = round_learning_rate
        self.image_size = image_size
        self.test_fraction = test_fraction
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.device = device
        self.num_threads = num_threads
        self.random_state = random_state
        self.params = params
        self.directory = directory
        self.verbose = verbose

    # --- training --------------------------------------------------------------------------------

    def fit(self, images: Any, labels: Any = None, *, test: tuple[Any, Any] | None = None) -> Self:
        """Train, cluster and retrain until the joint loss stops falling.

        Args:
            images: See the class.
            labels: (N,) integers or strings, -1 where the class is unknown. None where there are
                none, or the images bring them: in a folder, and in a Dataset of pairs.
            test: Images and labels (None as above) that are held out: never trained on, but scored
                in every round. `test_fraction` holds out some of `images` instead.

        Raises:
            ValueError: Images, labels or parameters are wrong (`vitdc.errors.InputError`).
            RuntimeError: The training failed (`vitdc.errors.TrainingError`).
        """
        params = self._parameters()
        if self._has_generator():  # of which every fit takes another number
            seed = check_random_state(self.random_state).randint(2**31)
            params = params.model_copy(update={"seed": int(seed)})
        with showing_progress(bool(self.verbose)), self._workplace() as work:
            classes = self._prepare(images, labels, test, params, work / "dataset")
            history = self._train(params, work)
            fit = _collect(params, history, work, classes, whole=test is None)
            best = work / "rounds" / f"{fit.best_round:02d}"
            predictor = Predictor.load(best, params.compute)
            self._set_fitted(fit, predictor, params.data, _origins(best))
        return self

    def fit_predict(self, images: Any, labels: Any = None, **fit_arguments: Any) -> np.ndarray:
        """Fit, and return `labels_`."""
        fitted: np.ndarray = self.fit(images, labels, **fit_arguments).labels_
        return fitted

    def fit_transform(self, images: Any, labels: Any = None, **fit_arguments: Any) -> Any:
        """Fit, and return the embeddings of `images`."""
        return self.fit(images, labels, **fit_arguments).transform(images)

    def _parameters(self) -> Params:
        """All parameters: those of the constructor, then those of `params`, then the defaults."""
        if self.params is None or isinstance(self.params, Mapping):
            given = Params.parse(self.params or {}, where="params")
        else:
            given = Params.load(Path(self.params))
        values = _merged(DEFAULTS, given.model_dump(exclude_unset=True))
        for name, places in KNOBS.items():
            if (value := getattr(self, name)) is not None:
                for place in places:
                    values = _merged(values, _at(place, _plain(value)))
        if self.random_state is not None and not self._has_generator():
            values["seed"] = _plain(self.random_state)
        return Params.parse(values, where=type(self).__name__)

    def _has_generator(self) -> bool:
        return isinstance(self.random_state, np.random.RandomState)

    @contextmanager
    def _workplace(self) -> Iterator[Path]:
        if self.directory is not None:
            yield Path(self.directory)
            return
        with TemporaryDirectory(prefix="vitdc-") as name:
            yield Path(name)

    def _prepare(
        self, images: Any, labels: Any, test: Any, params: Params, output: Path
    ) -> list[Any]:
        """Write the images as a Dataset, in the way of the `prepare` step; returns the classes."""
        classes = None
        if _is_place(images):
            if labels is not None or test is not None:
                raise InputError(
                    f"{images}: the sub-folders are the labels, so leave `labels` out;"
                    " `test_fraction` holds images out"
                )
            write_dataset(_place(images, params.data), output=output)
        else:
            source = GivenSource.open(images, labels, test=test, config=params.data)
            config = DataConfig(**_without_place(params.data), source=NAME)
            check_no_files(config, NAME)
            write_source(source, config, name=NAME, output=output)
            classes = source.classes
        dataset = Dataset.load(output)
        self._say(dataset)
        params.clustering.check_fit(
            num_images=len(dataset.train), num_classes=dataset.num_own_clusters
        )
        return list(dataset.class_names) if classes is None else classes.tolist()

    def _train(self, params: Params, work: Path) -> Round:
        """The steps that `vitdc run` takes after `prepare`."""
        scratch = work / "scratch" if self.directory is not None else None
        shared: dict[str, Any] = {
            "dataset": work / "dataset",
            "compute": params.compute,
            "seed": params.seed,
        }
        pretrained = steps.pretrain(
            **shared,
            model=params.model,
            pretraining=params.pretraining,
            output=work / "pretrained",
            scratch=scratch,
        )
        self._say(pretrained)
        table = summary.RoundTable(print)
        history = loop.refine(
            **shared,
            checkpoint=work / "pretrained",
            clustering=params.clustering,
            joint=params.joint,
            convergence=params.convergence,
            output=work / "rounds",
            scratch=scratch,
            on_round=(lambda rows, _: table.add(rows[-1])) if self.verbose else None,
        )
        if scratch is not None:
            evaluation = steps.evaluate(
                **shared,
                **loop.round_arguments(loop.round_directories(work / "rounds")),
                evaluation=params.evaluation,
                output=work / "results",
            )
            artifacts.remove(scratch)
            self._say(evaluation)
        elif self.verbose:
            print(summary.describe_verdict(history))
        return history

    def _say(self, artifact: object) -> None:
        if self.verbose:
            print(summary.describe(artifact))

    def _set_fitted(
        self, fit: Fit, predictor: Predictor, data: DataConfig, made_by: dict[str, Any]
    ) -> None:
        self._fit, self._data, self._made_by = fit, data, made_by
        self._predictor = replace(predictor, clustering=_in_memory(predictor.clustering))
        self._n_features_out = predictor.clustering.centroids.shape[1]
        self.labels_ = np.array(fit.labels)
        self.image_names_ = np.array(fit.image_names, object)
        self.cluster_centers_ = np.array(predictor.clustering.centroids)
        self.image_shape_ = predictor.image_shape
        self.classes_ = np.array(fit.classes)
        self.rounds_ = [dict(vars(row)) for row in fit.rows]
        self.history_ = [dict(row) for row in fit.history]
        self.best_round_ = fit.best_round
        self.stop_reason_ = fit.stop_reason
        self.n_iter_ = max(len(fit.rows) - 1, 0)

    # --- new images ------------------------------------------------------------------------------

    @property
    def predictor_(self) -> Predictor:
        """The model and its centroids, for uint8 images of the model's own shape."""
        check_is_fitted(self)
        return self._predictor

    def predict(self, images: Any) -> np.ndarray:
        """(N,) int64: the cluster of every image; of a folder, in the order of the files' names."""
        return self.assign(images).cluster

    def transform(self, images: Any) -> Any:
        """(N, D) float32: the embedding of every image, as features for other estimators.

        The distances to the centroids, which `KMeans.transform` gives, are in `distances`.
        """
        return self._embed(images)

    def _embed(self, images: Any) -> np.ndarray:
        predictor = self.predictor_
        with showing_progress(bool(self.verbose)):
            batches = [predictor.embed(batch) for batch in self._batches(images)]
        return np.concatenate([np.empty((0, self._n_features_out), np.float32), *batches])

    def distances(self, images: Any) -> np.ndarray:
        """(N, K) float32: Euclidean distance of every image to every centroid."""
        embedding = self._embed(images)
        columns = [
            np.linalg.norm(embedding - centroid, axis=1) for centroid in self.cluster_centers_
        ]
        return np.stack(columns, axis=1)

    def assign(self, images: Any) -> Prediction:
        """Cluster, distance, second-nearest distance, margin and whether it is unsure."""
        predictor = self.predictor_
        with showing_progress(bool(self.verbose)):
            parts = [predictor.predict(batch) for batch in self._batches(images)]
        parts = parts or [predictor.predict(np.empty((0, *predictor.image_shape), np.uint8))]
        return Prediction(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def score(self, images: Any, labels: Any = None) -> float:
        """NMI of the predicted clusters with the labels, in [0, 1]; unknown labels do not count.

        Raises:
            ValueError: There is no label.
        """
        check_is_fitted(self)
        if labels is None:
            raise InputError("score: needs labels, because it compares clusters with them")
        clusters = self.predict(images)
        if len(clusters) != len(labels):
            raise InputError(f"labels: {len(labels)} for {len(clusters)} images")
        nmi = metrics.score_split(encode_labels(labels)[0].codes, clusters).nmi
        if nmi is None:
            raise InputError("score: needs labels, but all of them are unknown (-1)")
        return nmi

    def _batches(self, images: Any) -> Iterator[np.ndarray]:
        """Stream images as the model takes them; converted only if it was fitted so."""
        predictor = self.predictor_
        config = DataConfig(**{**self._data.model_dump(), **predictor.checkpoint.decoding})
        shape = predictor.image_shape
        if _is_place(images):
            place = _place(images, config)
            yield from stream_images(open_store(place), place, shape)
            return
        target = Target.of(shape, config)._replace(shape=shape)
        for chunk in open_given(images, config).chunks(
            predictor.compute.embedding_batch_size, target
        ):
            yield chunk.images

    # --- files -----------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a model directory: safetensors, npy, csv and JSON, for `load` and `vitdc predict`.

        Args:
            path: Replaced if it is a model directory already, otherwise new.

        Raises:
            ValueError: Something else is there.
        """
        predictor = self.predictor_
        with artifacts.replacing(Path(path)) as directory:
            predictor.checkpoint.save(
                directory / "checkpoint", predictor.model.state_dict(), self._made_by["checkpoint"]
            )
            predictor.clustering.save(directory / "clustering", self._made_by["clustering"])
            self._fit.save(directory / "fit", {"step": "fit"})

    @classmethod
    def load(cls, path: str | os.PathLike[str], **parameters: Any) -> Self:
        """A fitted estimator from what `save` wrote, a results directory or any model directory.

        Nothing is unpickled. What a results directory does not know of the estimator, such as the
        pretraining, is left at its default.

        Args:
            path: The directory.
            parameters: Parameters of the constructor that replace the saved ones, e.g. device.

        Raises:
            ValueError: There is no model, or it is damaged or of another format version.
        """
        directory = find_model_directory(Path(path))
        saved = directory / "fit"
        fit = Fit.load(saved) if saved.exists() else _fit_of_run(Path(path), directory)
        params = Params.parse(fit.params, where=str(path))
        knobs = {name: _common_value(params, places) for name, places in KNOBS.items()}
        values = {**knobs, "random_state": params.seed, "params": dict(fit.params), **parameters}
        estimator = cls(**values)
        given = estimator._parameters()
        predictor = Predictor.load(directory, given.compute)
        estimator._set_fitted(fit, predictor, given.data, _origins(directory))
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and joblib: the weights as arrays, on whatever device they are."""
        state: dict[str, Any] = dict(super().__getstate__())
        if predictor := state.get("_predictor"):
            weights = {k: v.cpu().numpy() for k, v in predictor.model.state_dict().items()}
            state |= {"_predictor": replace(predictor, model=None), "_weights": weights}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        weights = state.pop("_weights", None)
        super().__setstate__(state)
        if weights is not None:
            tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
            device = resolve_device(self._predictor.compute)
            model = load_model(self._predictor.checkpoint, tensors).to(device)
            self._predictor = replace(self._predictor, model=model, device=device)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_predictor")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _naming_images(method: Any) -> Any:
    """Give the first argument its name back, which is X where `set_output` has wrapped a method."""

    @wraps(method)
    def named(self: DeepClustering, images: Any, *arguments: Any, **options: Any) -> Any:
        return method(self, images, *arguments, **options)

    return named


for _name in ("transform", "fit_transform"):
    setattr(DeepClustering, _name, _naming_images(getattr(DeepClustering, _name)))


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `more` over them, section by section."""
    merged = dict(values)
    for key, value in more.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _at(place: str, value: Any) -> dict[str, Any]:
    """The value in its sections: {"joint": {"gamma": 0.1}}."""
    section, _, rest = place.partition(".")
    return {section: _at(rest, value) if rest else value}


def _common_value(params: Params, places: tuple[str, ...]) -> Any:
    """The value in all of the places; None, which leaves it to `params`, if there is none such."""
    first, *others = (attrgetter(place)(params) for place in places)
    return first if all(other == first for other in others) else None


def _plain(value: Any) -> Any:
    """Python's own number for one of NumPy, as searches over np.arange hand them over."""
    return value.item() if isinstance(value, np.generic) else value


def _is_place(images: Any) -> bool:
    return isinstance(images, str | os.PathLike)


def _without_place(config: DataConfig) -> dict[str, Any]:
    return {key: value for key, value in config.model_dump().items() if key not in PLACE}


def _place(images: Any, config: DataConfig) -> DataConfig:
    """The `data` section that reads a folder or an S3 address."""
    address = os.fspath(images)
    where = {"source": address} if address.startswith(SCHEME) else {"source": "folder"}
    root = {} if address.startswith(SCHEME) else {"root": address}
    return DataConfig(**_without_place(config), **where, **root)


def _collect(params: Params, history: Round, work: Path, classes: list[Any], *, whole: bool) -> Fit:
    """What the estimator knows beside its model.

    Args:
        params: All parameters.
        history: The last Round.
        work: The working directory.
        classes: The labels there were.
        whole: Whether the held-out images, too, are of those that were given to be clustered.
    """
    rounds = [RoundPaths.in_directory(path) for path in loop.round_directories(work / "rounds")]
    first, last, best = (
        Clustering.load(rounds[index].clustering) for index in (0, -1, history.best_round)
    )
    initial = Findings(Embeddings.load(rounds[0].embeddings), first)
    names, labels = _clusters(Dataset.load(work / "dataset"), best, whole=whole)
    return Fit(
        params=_used(params),
        classes=classes,
        rows=complete_rows(history, initial=initial, last=last),
        history=[row for paths in rounds for row in _history(Checkpoint.load(paths.checkpoint))],
        best_round=history.best_round,
        stop_reason=history.verdict,
        image_names=names,
        labels=labels,
    )


def _clusters(
    dataset: Dataset, clustering: Clustering, *, whole: bool
) -> tuple[list[str], np.ndarray]:
    """Names and clusters of the training images, or of all, in the order they were given in.

    It is the order of their names: numbers with leading zeros, or the paths of files.
    """
    assignments = (clustering.split(split).assignment for split in artifacts.SPLITS)
    table = zip(dataset.image_names(), np.concatenate(list(assignments)).tolist(), strict=True)
    chosen = [(name, label) for (name, split), label in table if whole or split == "train"]
    names, labels = zip(*sorted(chosen), strict=True)
    return list(names), np.array(labels, np.int64)


def _history(checkpoint: Checkpoint) -> list[dict[str, float]]:
    return [{"round": checkpoint.round, **row} for row in checkpoint.history]


def _used(params: Params) -> dict[str, Any]:
    values = params.model_dump(mode="json")
    return {
        "seed": params.seed,
        **{section: values[section] for section in USED},
        "data": _without_place(params.data),
    }


def _fit_of_run(path: Path, directory: Path) -> Fit:
    """What a results directory, or a model directory alone, says of how it was made."""
    checkpoint = Checkpoint.load(directory / "checkpoint")
    clustering = Clustering.load(directory / "clustering")
    found = artifacts.made_by(directory / "checkpoint")
    params = {key: found[key] for key in ("seed", *USED) if key in found}
    rows: list[RoundRow] = []
    names = [str(number) for number in range(len(clustering.train))]
    labels, stop_reason = np.array(clustering.train.assignment), ""
    if (path / "artifact.json").is_file():
        evaluation = Evaluation.load(path)
        rows, stop_reason = evaluation.rows, evaluation.metrics["stop_reason"]
        table = list(evaluation.clusters())
        names = [row.image for row in table]
        labels = np.array([row.cluster for row in table], np.int64)
    return Fit(
        params={**params, "model": checkpoint.model, "clustering": clustering.config},
        classes=list(checkpoint.class_names),
        rows=rows,
        history=_history(checkpoint),
        best_round=checkpoint.round,
        stop_reason=stop_reason,
        image_names=names,
        labels=labels,
    )


def _origins(directory: Path) -> dict[str, Any]:
    return {name: artifacts.made_by(directory / name) for name in ("checkpoint", "clustering")}


def _in_memory(clustering: Clustering) -> Clustering:
    """The same without memory maps of files, which may vanish."""
    splits: dict[str, Any] = {
        name: SplitClustering(*(np.array(array) for array in vars(split).values()))
        for name in artifacts.SPLITS
        for split in (clustering.split(name),)
    }
    typicality = Typicality(*(np.array(array) for array in clustering.typicality))
    return replace(
        clustering, centroids=np.array(clustering.centroids), typicality=typicality, **splits
    )


def _knob_lines() -> str:
    """The part of the docstring that `vitdc.config` knows already."""
    return "\n".join(_knob_line(name, places) for name, places in KNOBS.items()).lstrip()


def _knob_line(name: str, places: tuple[str, ...]) -> str:
    section, _, key = places[0].partition(".")
    config = type(getattr(Params(), section))
    text = " ".join((config.model_fields[key].description or "").split())
    of_one_section = all(place.startswith(f"{section}.") for place in places)
    if of_one_section and issubclass(config, TrainingConfig) and key in TrainingConfig.model_fields:
        text = f"{(config.__doc__ or '').rstrip('.')}: {text[:1].lower()}{text[1:]}"
    defaults = Params.parse(DEFAULTS, where="defaults")
    values = dict.fromkeys(json.dumps(attrgetter(place)(defaults)) for place in places)
    where = " and ".join(f"`{place}`" for place in places)
    text = f"{name}: {text} Default: {where} of `params` ({' and '.join(values)})."
    return textwrap.fill(text, 96, initial_indent=" " * 4, subsequent_indent=" " * 8)


DeepClustering.__doc__ = inspect.cleandoc(DeepClustering.__doc__ or "").replace(
    "{knobs}", _knob_lines()
)
