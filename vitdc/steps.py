"""The steps of the method: pure functions from artifacts and configuration to one artifact.

A step's keyword arguments are its command line: `Path`s are artifacts (`--dataset DIR`), sections
come from `params.yaml`. The in-process loop, DVC and Kubeflow all call these functions. They are
the only place where the maths modules meet the file formats.

Libraries are imported inside the steps, because `check` must start without torch, and the command
line must answer without any of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vitdc import __version__, artifacts
from vitdc.artifacts import (
    Checkpoint,
    Clustering,
    ClusteringScores,
    Dataset,
    Embeddings,
    Evaluation,
    Round,
    RoundPaths,
    RoundRow,
    SplitClustering,
    SplitEmbeddings,
)
from vitdc.config import (
    ClusteringConfig,
    ComputeConfig,
    ConvergenceConfig,
    DataConfig,
    EvaluationConfig,
    JointConfig,
    ModelConfig,
    Params,
    PretrainingConfig,
    Section,
    SelfSupervisedConfig,
    TrainingConfig,
)
from vitdc.errors import InputError, TrainingError
from vitdc.scratch import claimed
from vitdc.watching import NOBODY, Watcher

if TYPE_CHECKING:
    import numpy as np

    from vitdc.evaluation import Findings
    from vitdc.model import DeepClusteringViT
    from vitdc.objectives import Objective, SelfSupervised

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=TrainingConfig)

ROUNDS_OF_EVALUATE = ("initial", "previous", "last")


def prepare(
    *, data: DataConfig, output: Path, on_listed: Callable[[Any], None] | None = None
) -> Dataset:
    """Read images from their source into the prepared format.

    Args:
        data: Where the images come from.
        output: Directory of the Dataset.
        on_listed: Called with the `vitdc.data.sources.Source` before any image file is decoded,
            e.g. to refuse what cannot follow.
    """
    from vitdc.data import write_dataset

    write_dataset(data, output=output, on_listed=on_listed)
    return Dataset.load(output)


def pretrain(
    *,
    dataset: Path,
    model: ModelConfig,
    pretraining: PretrainingConfig,
    compute: ComputeConfig,
    seed: int,
    output: Path,
    scratch: Path | None = None,
    watcher: Watcher = NOBODY,
) -> Checkpoint:
    """Train the ViT, on labels (eq. 1-5) or on none; the result is round 0.

    Args:
        dataset: Directory of the Dataset.
        model: The architecture.
        pretraining: What to optimise, how long and how to train; 0 epochs keeps the initial
            weights.
        compute: Device, threads and precision.
        seed: Seed of the initial weights and of the training.
        output: Directory of the Checkpoint.
        scratch: Directory for the state after every epoch; an interrupted run continues from it.
        watcher: Hears of batches and epochs.
    """
    from vitdc.model import build_model
    from vitdc.objectives import Joint, Supervised, choose_initial
    from vitdc.seeding import seeded

    images = Dataset.load(dataset)
    choice = choose_initial(
        pretraining.objective,
        supervision=images.supervision,
        is_pretrained=bool(model.pretrained),
        trainable=model.resolved_trainable,
    )
    logger.info("pretrain: %s, because %s", choice.objective or "nothing to do", choice.reason)
    is_supervised = choice.objective == "supervised"
    num_outputs = len(images.class_names) if is_supervised else 0
    with seeded(seed, "pretrain", "weights"):
        vit = build_model(
            model,
            image_shape=images.image_shape,
            num_outputs=num_outputs,
            mean=images.mean,
            std=images.std,
        )
    config: TrainingConfig
    objective: Objective
    if choice.objective in ("simclr", "vicreg") and pretraining.self_supervised.epochs:
        config = pretraining.self_supervised
        objective = _self_supervised(
            choice.objective, images, config, vit.embedding_dim, compute=compute, seed=seed
        )
    else:
        config = pretraining if is_supervised else _without_epochs(pretraining)
        config = _without_augmentation(vit, config, "pretrain")
        objective = Supervised(images.training_labels, config)
    description = Checkpoint(
        round=0,
        model=model.model_dump()
        | {"name": model.name or vit.backbone.name, "trainable": vit.trainable},
        image_shape=images.image_shape,
        class_names=images.class_names,
        num_outputs=num_outputs,
        supervision=images.supervision if is_supervised else "none",
        mean=vit.backbone.mean,
        std=vit.backbone.std,
        history=[],
        path=output,
        backbone=vit.backbone.described(),
        decoding=images.decoding,
    )
    return _train(
        vit,
        _training_inputs(vit, images, None, config, compute),
        Joint(objective),
        config,
        description=description,
        compute=compute,
        seed=seed,
        made_by=_pretrain_made_by(dataset, model, pretraining, compute, seed),
        scratch=scratch,
        watcher=watcher,
    )


def check_reusable(checkpoint: Path, *, dataset: Path, params: Params) -> None:
    """Refuse a round 0 that is not what `pretrain` would make.

    Args:
        checkpoint: Directory of the Checkpoint of an earlier run.
        dataset: Directory of the Dataset.
        params: Of this run.

    Raises:
        InputError: The images, the weights or a section differ; all are named.
    """
    wanted = {
        "vitdc": __version__,
        **_pretrain_made_by(dataset, params.model, params.pretraining, params.compute, params.seed),
    }
    found = artifacts.made_by(checkpoint)
    names = {"inputs": "the images", "pretrained_sha256": "the weights"}
    differing = [names.get(k, k) for k in sorted(wanted | found) if wanted.get(k) != found.get(k)]
    if differing:
        raise InputError(
            f"{checkpoint}: cannot be reused, because other than now were {', '.join(differing)};"
            " set them as they were, or leave --reuse out"
        )


def _pretrain_made_by(
    dataset: Path,
    model: ModelConfig,
    pretraining: PretrainingConfig,
    compute: ComputeConfig,
    seed: int,
) -> dict[str, Any]:
    from vitdc.weights import fingerprint

    sections = (model, pretraining, compute)
    return _made_by("pretrain", [dataset], *sections, seed=seed, **fingerprint(model))


def _self_supervised(
    name: Literal["simclr", "vicreg"],
    images: Dataset,
    config: SelfSupervisedConfig,
    embedding_dim: int,
    *,
    compute: ComputeConfig,
    seed: int,
) -> SelfSupervised:
    """The objective with its neighbours, which are found again when a training is resumed."""
    from vitdc.device import limited_threads
    from vitdc.objectives import SelfSupervised, pixel_neighbours
    from vitdc.seeding import derive_seed, seeded

    with limited_threads(compute.num_threads):
        neighbours = pixel_neighbours(
            images.train.images,
            config.num_neighbours,
            seed=derive_seed(seed, "pretrain", "neighbours"),
        )
    with seeded(seed, "pretrain", "projector"):
        return SelfSupervised(name, config, neighbours=neighbours, embedding_dim=embedding_dim)


def embed(
    *,
    dataset: Path,
    checkpoint: Path,
    features: Path | None = None,
    compute: ComputeConfig,
    output: Path,
) -> Embeddings:
    """Embed every image of both splits, with its cross-entropy and what the head predicts.

    The cross-entropy is against what the checkpoint was trained on, so that the exact l comes from
    it; of test images it is against the label, if the head knows classes. Where the backbone is
    frozen, what it says about the images is kept, too, and reused by the rounds.

    Args:
        dataset: Directory of the Dataset.
        checkpoint: Directory of the Checkpoint.
        features: Directory of the Embeddings of round 0, which hold the features of a frozen
            backbone. Without it they are computed anew, to the same bytes.
        compute: Device, threads and batch size.
        output: Directory of the Embeddings.
    """
    from vitdc.device import limited_threads, resolve_device
    from vitdc.embedding import embed_split, represent_split
    from vitdc.model import Top, load_model

    images, trained = Dataset.load(dataset), Checkpoint.load(checkpoint)
    _check_fit(images, trained, dataset, checkpoint)
    device = resolve_device(compute)
    vit = load_model(trained)
    given = _load_features(features, vit, dataset) if features else None
    keeps_features = vit.is_frozen and given is None
    top = Top(vit.to(device)).eval() if vit.is_frozen else vit.to(device)
    made_by = _made_by("embed", [dataset, checkpoint], compute)
    with (
        limited_threads(compute.num_threads),
        artifacts.writing(output, Embeddings.kind, made_by) as writer,
    ):
        is_pretrained = bool(trained.model.get("pretrained"))
        writer.metadata = {"round": trained.round, "is_pretrained": is_pretrained}
        if keeps_features:
            writer.metadata["features_of"] = _features_of(vit, dataset)
        for name in artifacts.SPLITS:
            split = images.split(name)
            out = SplitEmbeddings.create(
                writer, name, len(split), vit.embedding_dim, with_features=keeps_features
            )
            settings: dict[str, Any] = {
                "device": device,
                "batch_size": compute.embedding_batch_size,
                "description": f"embed {name}",
            }
            if out.features is not None:
                represent_split(vit, split.images, out.features, **settings)
            known = given.split(name).features if given else out.features
            inputs = split.images if known is None else known
            embed_split(top, inputs, _targets(images, trained, name), out, **settings)
    return Embeddings.load(output)


def cluster(
    *,
    dataset: Path,
    embeddings: Path,
    previous: Path | None = None,
    clustering: ClusteringConfig,
    compute: ComputeConfig,
    seed: int,
    output: Path,
) -> Clustering:
    """Cluster the training embeddings; test images go to their nearest centroid.

    Without labels and pretrained weights the clusters are found on a manifold of the embedding, and
    test images go to the cluster that they are most typical of.

    Where some labels may be trained on and others are unknown, the first clusters are the classes,
    and the images with a known label stay in theirs; these do not score. An automatic number of
    clusters is found in round 0; later rounds have that of the round before.

    Args:
        dataset: Directory of the Dataset; labels are for the scores, and partial ones for the
            clusters too; its images tell what is typical of a cluster.
        embeddings: Directory of the Embeddings.
        previous: Directory of the Clustering of the round before, to start from and to keep the
            cluster ids of; none in round 0.
        clustering: Number of clusters, and where and how they are found.
        compute: Threads.
        seed: Seed of the random starts and of the silhouette's sample.
        output: Directory of the Clustering.
    """
    import numpy as np

    from vitdc import metrics
    from vitdc.clustering import assign, kmeans, match_ids, relabel
    from vitdc.device import limited_threads
    from vitdc.manifold import (
        choose_space,
        find_on_manifold,
        load_libraries,
        most_agreed,
        unfold,
    )
    from vitdc.seeding import derive_seed
    from vitdc.typicality import atypicality, fit, leave_one_out, most_typical

    images, embedded = Dataset.load(dataset), Embeddings.load(embeddings)
    _check_same_images(images, dataset, embedded, embeddings)
    before = Clustering.load(previous) if previous else None
    _check_previous(before.round if before else -1, previous, embedded.round, embeddings)
    if before and previous:
        _check_same_images(images, dataset, before, previous)
        _check_num_clusters(before, previous, clustering)
    made_by = _made_by(
        "cluster",
        [dataset, embeddings, *([previous] if previous else [])],
        clustering,
        compute,
        seed=seed,
    )
    clustering.check_fit(num_images=len(images.train), num_classes=images.num_own_clusters)
    points = np.ascontiguousarray(embedded.train.embedding)
    if not np.isfinite(points).all():
        raise TrainingError(f"{embeddings}: holds embeddings that are not finite; train again")
    space = choose_space(
        clustering.space, supervision=images.supervision, is_pretrained=embedded.is_pretrained
    )
    if before is None:
        logger.info("cluster: space %s, because %s", *space)
    load_libraries(space.name)
    own = images.training_labels if images.supervision == "partial" else None
    with limited_threads(compute.num_threads):
        stream = derive_seed(seed, "cluster", embedded.round)
        layouts = [points]
        if space.name == "manifold":
            num_layouts = 1 if before else clustering.manifold_layouts
            seeds = [stream, *(derive_seed(stream, "layout", i) for i in range(1, num_layouts))]
            layouts = [unfold(points, clustering, seed=each) for each in seeds]
        clustering = _resolve_num_clusters(clustering, layouts[0], images, before, seed=seed)
        num_clusters = clustering.resolved_num_clusters
        if space.name == "manifold":
            previous_assignment = before.train.assignment if before else None
            candidates = [
                find_on_manifold(
                    points, each, clustering, seed=stream, own=own, previous=previous_assignment
                )
                for each in layouts
            ]
            chosen, agreement = most_agreed([each.assignment for each in candidates])
            layout, found = layouts[chosen], candidates[chosen]
            if len(layouts) > 1:
                text = "cluster: %d layouts of the manifold agree on the clusters with ARI %.2f"
                logger.info(text, len(layouts), agreement)
        else:
            layout, initial = points, before.centroids if before else None
            found = kmeans(points, clustering, seed=stream, initial=initial, own=own)
        if before and own is None:
            ids = match_ids(before.train.assignment, found.assignment, num_clusters=num_clusters)
            found = relabel(found, ids)
        pictures = {name: images.split(name).thumbnails for name in artifacts.SPLITS}
        typicality = fit(points, pictures["train"], found.assignment, num_clusters=num_clusters)
        test = embedded.test.embedding
        own_test = None
        if space.name == "manifold":
            own_test = most_typical(typicality, test, pictures["test"])
        nearest = {
            "train": assign(points, found.centroids, own=found.assignment),
            "test": assign(test, found.centroids, own=own_test),
        }
        atypical = {
            name: atypicality(
                typicality, embedded.split(name).embedding, pictures[name], nearest[name][0]
            )
            for name in artifacts.SPLITS
        }
        atypical["train"] = leave_one_out(atypical["train"], nearest["train"][0])
        splits = {n: SplitClustering(*nearest[n], atypical[n]) for n in artifacts.SPLITS}
        train = splits["train"]
        silhouette = metrics.silhouette(
            layout,
            train.assignment,
            num_samples=clustering.silhouette_samples,
            seed=derive_seed(seed, "silhouette"),
        )
    scores = ClusteringScores(
        **{n: metrics.score_split(images.scoring_labels(n), splits[n].assignment) for n in splits},
        silhouette=silhouette,
        changed=float((train.assignment != before.train.assignment).mean()) if before else None,
        inertia=float(np.square(train.distance, dtype=np.float64).mean()),
        num_empty=int((np.bincount(train.assignment, minlength=len(found.centroids)) == 0).sum()),
    )
    Clustering(
        round=embedded.round,
        centroids=found.centroids,
        **splits,
        scores=scores,
        config={**clustering.model_dump(), "space": space.name},
        typicality=typicality,
    ).save(output, made_by)
    return Clustering.load(output)


def retrain(
    *,
    dataset: Path,
    checkpoint: Path,
    clustering: Path,
    features: Path | None = None,
    joint: JointConfig,
    compute: ComputeConfig,
    seed: int,
    output: Path,
    scratch: Path | None = None,
    watcher: Watcher = NOBODY,
) -> Checkpoint:
    """Train on with the joint loss (eq. 8), against the frozen clusters of the round before.

    Args:
        dataset: Directory of the Dataset.
        checkpoint: Directory of the Checkpoint of the round before.
        clustering: Directory of the Clustering of the round before.
        features: Directory of the Embeddings of round 0, which hold the features of a frozen
            backbone. Without it they are computed anew, to the same bytes.
        joint: gamma, and how long and how to train.
        compute: Device, threads and precision.
        seed: Seed of the training.
        output: Directory of the Checkpoint.
        scratch: Directory for the state after every epoch; an interrupted run continues from it.
        watcher: Hears of batches and epochs.
    """
    from vitdc.model import load_model
    from vitdc.objectives import Anchors, Joint, Supervised, pseudo_labels
    from vitdc.seeding import seeded

    images, trained = Dataset.load(dataset), Checkpoint.load(checkpoint)
    _check_fit(images, trained, dataset, checkpoint)
    frozen = Clustering.load(clustering)
    _check_round(frozen.round, trained.round, clustering, checkpoint)
    _check_same_images(images, dataset, frozen, clustering)
    anchors = Anchors(frozen.centroids, frozen.train.assignment, joint.gamma)
    targets, num_outputs = images.training_labels, len(images.class_names)
    if images.supervision != "full":
        confident = joint.confident or (1.0 if frozen.config.get("space") == "manifold" else 0.5)
        targets = pseudo_labels(
            targets, frozen.train.assignment, frozen.train.distance, confident=confident
        )
        num_outputs = len(frozen.centroids)
    vit = load_model(trained)
    config, supervision = _without_augmentation(vit, joint, "retrain"), images.supervision
    if vit.trainable == "none":
        config, num_outputs, supervision = _without_epochs(joint), 0, "none"
    with seeded(seed, "retrain", trained.round + 1, "head"):
        vit.set_num_outputs(num_outputs)
    description = replace(
        trained,
        round=trained.round + 1,
        num_outputs=num_outputs,
        supervision=supervision,
        history=[],
        path=output,
        targets=None if images.supervision == "full" or not num_outputs else targets,
    )
    inputs = [dataset, checkpoint, clustering]
    return _train(
        vit,
        _training_inputs(vit, images, features, config, compute),
        Joint(Supervised(targets, config), anchors),
        config,
        description=description,
        compute=compute,
        seed=seed,
        made_by=_made_by("retrain", inputs, joint, compute, seed=seed),
        scratch=scratch,
        watcher=watcher,
        before=checkpoint,
    )


def check(
    *,
    embeddings: Path,
    clustering: Path,
    previous: Path | None = None,
    joint: JointConfig,
    convergence: ConvergenceConfig,
    output: Path,
) -> Round:
    """Compute the exact joint loss of a round and decide whether the rounds go on.

    Args:
        embeddings: Directory of the Embeddings of this round.
        clustering: Directory of the Clustering of the round before, which the round was trained
            against.
        previous: Directory of the Round before; none in round 1.
        joint: gamma.
        convergence: When the rounds stop.
        output: Directory of the Round.
    """
    import math

    from vitdc.convergence import best_round, effective_rank, is_collapsed, round_loss, verdict

    embedded, frozen = Embeddings.load(embeddings), Clustering.load(clustering)
    _check_round(frozen.round + 1, embedded.round, clustering, embeddings)
    _check_same_images(embedded, embeddings, frozen, clustering)
    rows = Round.load(previous).rows if previous else [RoundRow(round=0, verdict="continue")]
    rows = [*rows[:-1], rows[-1].with_scores(frozen.scores)]
    _check_previous(rows[-1].round, previous, embedded.round, embeddings)
    value = round_loss(
        embedding=embedded.train.embedding,
        cross_entropy=embedded.train.cross_entropy,
        centroids=frozen.centroids,
        assignment=frozen.train.assignment,
        gamma=joint.gamma,
    )
    if not math.isfinite(value.loss):
        raise TrainingError(
            f"{embeddings}: the joint loss of round {embedded.round} is not finite; train again"
        )
    rank = effective_rank(embedded.train.embedding)
    rows.append(RoundRow(round=embedded.round, **value._asdict(), effective_rank=rank))
    collapsed = is_collapsed(embedded.train.embedding, frozen.train.assignment)
    decision = verdict(rows, convergence, is_collapsed=collapsed)
    rows[-1] = replace(rows[-1], verdict=decision)
    inputs = [embeddings, clustering, *([previous] if previous else [])]
    Round(
        rows=rows,
        verdict=decision,
        best_round=best_round(rows, decision),
        gamma=joint.gamma,
        epsilon=convergence.epsilon,
    ).save(output, _made_by("check", inputs, joint, convergence))
    return Round.load(output)


def evaluate(
    *,
    dataset: Path,
    initial: RoundPaths,
    previous: RoundPaths,
    last: RoundPaths,
    round: Path,
    evaluation: EvaluationConfig,
    compute: ComputeConfig,
    seed: int,
    output: Path,
) -> Evaluation:
    """Score the best round, draw the pictures and write the report.

    Args:
        dataset: Directory of the Dataset.
        initial: Checkpoint, Embeddings and Clustering of round 0.
        previous: Those of the round before the last.
        last: Those of the last round.
        round: Directory of the last Round, which holds the history and the verdict.
        evaluation: What to draw.
        compute: Threads.
        seed: Seed of the decoder, the map and the pixel baseline.
        output: Directory of the results.
    """
    from vitdc import evaluation as findings
    from vitdc import report
    from vitdc.device import limited_threads
    from vitdc.manifold import load_libraries
    from vitdc.seeding import derive_seed

    load_libraries("embedding")
    images, history = Dataset.load(dataset), Round.load(round)
    paths = dict(zip(ROUNDS_OF_EVALUATE, (initial, previous, last), strict=True))
    numbers = (0, history.current.round - 1, history.current.round)
    loaded = {
        name: _load_findings(paths[name], number, round, images)
        for name, number in zip(ROUNDS_OF_EVALUATE, numbers, strict=True)
    }
    first, final = loaded["initial"], loaded["last"]
    assert history.best_round in numbers[1:], "the loop stops when l no longer falls"
    best = "last" if history.best_round == history.current.round else "previous"
    best_found = loaded[best]
    rows = findings.complete_rows(history, initial=first, last=final.clustering)
    kmeans = ClusteringConfig.parse(best_found.clustering.config, where=str(paths[best].clustering))
    with limited_threads(compute.num_threads):
        pixels = None
        if evaluation.pixel_baseline and images.train.has_labels and images.keeps_images:
            pixels = findings.score_pixels(images, kmeans, seed=derive_seed(seed, "pixels"))
        metrics = findings.collect_metrics(images, best_found, history, pixels=pixels)
        parameters = _parameters(
            [dataset, initial.checkpoint, initial.clustering, round], evaluation
        )
        data = findings.report_data(
            images,
            initial=first,
            best=best_found,
            history=history,
            rows=rows,
            found=metrics,
            parameters=parameters,
            config=evaluation,
            seed=seed,
        )
    figures = report.build_figures(data)
    inputs = [dataset, *initial, *previous, *last, round]
    Evaluation(
        metrics,
        rows,
        output,
        test_data=images.split_hash("test"),
        parameters=parameters,
        dataset_name=images.name,
        content_hash=images.content_hash,
    ).save(
        clusters=findings.cluster_rows(images, best_found.clustering),
        report=report.render_page(data, figures),
        figures={name: report.figure_png(figure) for name, figure in figures.items()},
        model=paths[best],
        made_by=_made_by("evaluate", inputs, evaluation, compute, seed=seed),
    )
    return Evaluation.load(output)


def _load_findings(paths: RoundPaths, number: int, round: Path, images: Dataset) -> Findings:
    """The embeddings and clusters of round `number`, which must be of these images."""
    from vitdc.evaluation import Findings

    found = Findings(Embeddings.load(paths.embeddings), Clustering.load(paths.clustering))
    _check_round(found.embeddings.round, number, paths.embeddings, round)
    _check_round(found.clustering.round, number, paths.clustering, round)
    _check_same_images(images, images.path, found.embeddings, paths.embeddings)
    _check_same_images(images, images.path, found.clustering, paths.clustering)
    return found


STEPS = (prepare, pretrain, embed, cluster, retrain, check, evaluate)


def _train(
    vit: DeepClusteringViT,
    inputs: np.ndarray,
    objective: Any,
    config: TrainingConfig,
    *,
    description: Checkpoint,
    compute: ComputeConfig,
    seed: int,
    made_by: dict[str, Any],
    scratch: Path | None,
    watcher: Watcher,
    before: Path | None = None,
) -> Checkpoint:
    """Train, write the Checkpoint, and clear the scratch that is no longer needed."""
    from vitdc.device import limited_threads
    from vitdc.model import Top
    from vitdc.training import train

    with (
        claimed(scratch and scratch / scratch_key(made_by)) as state,
        limited_threads(compute.num_threads),
    ):
        history: list[dict[str, float]] = []
        if vit.trainable != "none":
            history = train(
                Top(vit) if vit.is_frozen else vit,
                inputs,
                objective,
                config,
                compute=compute,
                seed=seed,
                stream=(made_by["step"], description.round),
                scratch=state,
                watcher=watcher,
            )
        replace(description, history=history).save(
            description.path,
            vit.state_dict(),
            made_by,
            constant=vit.backbone_names() if vit.is_frozen else (),
            before=before,
        )
        if state:
            artifacts.remove(state)
    return Checkpoint.load(description.path)


def _made_by(step: str, inputs: list[Path], *sections: Section, **values: Any) -> dict[str, Any]:
    """What an artifact was made by: step, hashes of the inputs, configuration, seed."""
    return {
        "step": step,
        "inputs": [artifacts.digest(path) for path in inputs],
        **{section.section_name(): section.model_dump() for section in sections},
        **values,
    }


def _without_epochs(config: Config) -> Config:
    """For a training of nothing."""
    return config.model_copy(update={"epochs": 0})


def _without_augmentation(vit: DeepClusteringViT, config: Config, step: str) -> Config:
    """The section as it is, or without what changes images where training sees only features."""
    from vitdc.augmentation import RANDOM

    switched_on = [name for name in RANDOM if getattr(config, name)]
    if not (vit.is_frozen and config.epochs and switched_on):
        return config
    logger.info(
        "%s: the backbone is frozen, and training sees its features, so %s %s off",
        *(step, ", ".join(switched_on), "is" if len(switched_on) == 1 else "are"),
    )
    return config.model_copy(update=dict.fromkeys(switched_on, 0))


def _training_inputs(
    vit: DeepClusteringViT,
    images: Dataset,
    features: Path | None,
    config: TrainingConfig,
    compute: ComputeConfig,
) -> np.ndarray:
    """What is trained on: images, or what a frozen backbone says about them."""
    import numpy as np

    from vitdc.device import limited_threads, resolve_device
    from vitdc.embedding import represent_split

    given = _load_features(features, vit, images.path) if features else None
    if given is not None and given.train.features is not None:
        return given.train.features
    if not vit.is_frozen or not config.epochs:
        return images.train.images
    device = resolve_device(compute)
    found = np.empty((len(images.train), vit.embedding_dim), np.float32)
    vit.eval().to(device)
    with limited_threads(compute.num_threads):
        size = compute.embedding_batch_size
        represent_split(vit, images.train.images, found, device=device, batch_size=size)
    vit.cpu()
    return found


def _features_of(vit: DeepClusteringViT, dataset: Path) -> str:
    """Names the features of a frozen backbone: which images, and all that they depend on."""
    return f"{artifacts.digest(dataset)}/{vit.fingerprint()}"


def _load_features(path: Path, vit: DeepClusteringViT, dataset: Path) -> Embeddings:
    """Embeddings with the features of these images by this backbone."""
    found = Embeddings.load(path)
    if not vit.is_frozen or found.features_of != _features_of(vit, dataset):
        raise InputError(
            f"{path}: holds no features of the images in {dataset} by this model's backbone; name"
            " the embeddings of its round 0, or none: then they are computed anew"
        )
    return found


def _parameters(paths: list[Path], evaluation: EvaluationConfig) -> dict[str, Any]:
    """The parameters that the artifacts at `paths` were really made with, by section."""
    found: dict[str, Any] = {}
    for path in paths:
        found |= artifacts.made_by(path)
    values = {name: found[name] for name in ("seed", *Params.section_names()) if name in found}
    return {**values, evaluation.section_name(): evaluation.model_dump()}


def scratch_key(made_by: dict[str, Any]) -> str:
    """Name of the scratch directory of the work that `made_by` describes."""
    text = json.dumps({"vitdc": __version__, **made_by}, sort_keys=True)
    return f"{made_by['step']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _targets(images: Dataset, trained: Checkpoint, split: str) -> np.ndarray:
    """(N,) what the cross-entropy of a split's images is against, -1 for nothing."""
    import numpy as np

    if split == "train":
        targets = images.training_labels if trained.targets is None else trained.targets
        if len(targets) != len(images.train):
            raise InputError(
                f"{trained.path}: was trained on {len(targets)} images with targets of their own,"
                f" {images.path} has {len(images.train)}; train again on this data set"
            )
        return targets
    return images.test.labels if trained.supervision != "none" else np.full(len(images.test), -1)


def _check_fit(images: Dataset, trained: Checkpoint, dataset: Path, checkpoint: Path) -> None:
    """A checkpoint is only used on images like those it was made for."""
    made_for = (trained.image_shape, trained.class_names)
    if made_for != (images.image_shape, images.class_names):
        raise InputError(
            f"{checkpoint}: was trained on images of shape {trained.image_shape} with"
            f" {len(trained.class_names)} classes, {dataset} has {images.image_shape} with"
            f" {len(images.class_names)}; train again on this data set"
        )


def _check_round(found: int, expected: int, path: Path, other: Path) -> None:
    if found != expected:
        raise InputError(f"{path}: does not belong to the round of {other}; mixed up directories?")


def _check_previous(number: int, previous: Path | None, here: int, path: Path) -> None:
    """`previous`, of round `number`, is of the round before `here`, the round of `path`."""
    if previous is not None:
        _check_round(number + 1, here, previous, path)
    elif number + 1 != here:
        raise InputError(
            f"{path}: is of round {here}, so `previous` is needed, that of round {here - 1}"
        )


def _check_same_images(
    one: Dataset | Embeddings, path: Path, other: Embeddings | Clustering, other_path: Path
) -> None:
    """Two artifacts hold as many images; more cannot be told from their shapes."""
    sizes, other_sizes = ([len(a.split(s)) for s in artifacts.SPLITS] for a in (one, other))
    if sizes != other_sizes:
        raise InputError(
            f"{other_path}: is not of the same images as {path}, which holds {sizes[0]} training"
            f" and {sizes[1]} test images, not {other_sizes[0]} and {other_sizes[1]}"
        )


def _resolve_num_clusters(
    clustering: ClusteringConfig,
    layout: np.ndarray,
    images: Dataset,
    before: Clustering | None,
    *,
    seed: int,
) -> ClusteringConfig:
    """The section with a number: what it says, else that of the round before, else one found."""
    if clustering.num_clusters != "auto":
        return clustering
    if before:
        return clustering.model_copy(update={"num_clusters": len(before.centroids)})
    from vitdc.num_clusters import suggest_for

    found = suggest_for(layout, clustering, images, seed=seed)
    logger.info("cluster: num_clusters %d, because %s", found.best.num_clusters, found)
    return clustering.model_copy(update={"num_clusters": found.best.num_clusters})


def _check_num_clusters(before: Clustering, previous: Path, clustering: ClusteringConfig) -> None:
    if clustering.num_clusters not in ("auto", len(before.centroids)):
        raise InputError(
            f"clustering.num_clusters: {clustering.num_clusters}, but {previous} has"
            f" {len(before.centroids)} clusters, and their number stays the same over the rounds"
        )
