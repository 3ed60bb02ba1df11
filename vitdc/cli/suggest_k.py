"""`vitdc suggest-k`: how many clusters the images of a run plausibly have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitdc.cli.options import dataset_option, results_argument, rounds_option
from vitdc.errors import InputError

if TYPE_CHECKING:
    from vitdc.explore.finding import FinishedRun
    from vitdc.num_clusters import Suggestion

BAR = 30  # characters of a silhouette of 1


@click.command("suggest-k")
@results_argument
@click.option(
    "--k-range",
    type=int,
    nargs=2,
    metavar="MIN MAX",
    help="Numbers of clusters to try. Default: `clustering.k_range` of the run.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw the table as a chart, too.",
)
@dataset_option
@rounds_option
def command(
    results: Path,
    k_range: tuple[int, int] | None,
    output: Path | None,
    dataset: Path | None,
    rounds: Path | None,
) -> None:
    """Say how many clusters the images of a run plausibly have.

    RESULTS is what `vitdc evaluate`, `vitdc run` or `dvc repro` wrote (default: results). The
    embeddings of round 0 are clustered into every number of clusters of a range. Later rounds were
    trained towards the clusters that they had, and would only confirm their number.

    \b
    Two scores, and neither needs a label:
      silhouette  how much nearer an image lies to its own cluster than to the next one, from
                  -1 to 1, where the clusters are found (on the manifold, or in the embedding)
      stability   how well the clusters of two random samples of 80 % of the images agree (ARI);
                  1 is the same clusters, 0 is chance

    Plausible numbers are stable (0.9 or more) and have a silhouette near the best. The answer is a
    range, because images do not say what counts as a kind: two alike may be one. Look at
    the clusters of a number or two before you decide. More than 5,000 images are sampled.

    Few clusters may be a coarse split, such as indoors and outdoors. Where the silhouette rises
    once more, a second range, of more clusters, is named. Let the range begin higher to look past a
    split: --k-range 4 20.

    \b
    vitdc suggest-k outputs/mine/results --output k.png
    vitdc run --output outputs/more -S clustering.num_clusters=12     # with a number of your own
    vitdc run --output outputs/auto -S clustering.num_clusters=auto   # with the best one of these
    """
    from vitdc.explore.finding import find_run

    if output is not None and output.suffix.lower() != ".png":
        raise InputError(f"--output {output}: the chart is a PNG; name it FILE.png")
    run = find_run(results, dataset=dataset, rounds=rounds)
    suggestion = suggest(run, k_range)
    click.echo(table(suggestion))
    click.echo(f"\n{suggestion}. {results} has {len(run.clustering.centroids)}.")
    if output is not None:
        draw(suggestion, output)
        click.echo(f"chart: {output}")


def suggest(run: FinishedRun, k_range: tuple[int, int] | None) -> Suggestion:
    """What `num_clusters: auto` would choose from in a run."""
    import numpy as np

    from vitdc import num_clusters
    from vitdc.config import ClusteringConfig
    from vitdc.device import limited_threads
    from vitdc.manifold import load_libraries, unfold
    from vitdc.seeding import derive_seed

    given = {} if k_range is None else {"k_range": k_range}
    where = "vitdc suggest-k" if k_range is None else "--k-range"
    asked = {**run.clusterings[0].config, "num_clusters": "auto", **given}
    config = ClusteringConfig.parse(asked, where=where)
    images = run.dataset
    config.check_fit(num_images=len(images.train), num_classes=images.num_own_clusters)
    seed = run.evaluation.parameters["seed"]
    points = np.ascontiguousarray(run.first_embeddings.train.embedding)
    load_libraries(config.space)
    with limited_threads(run.evaluation.parameters["compute"]["num_threads"]):
        if config.space == "manifold":
            points = unfold(points, config, seed=derive_seed(seed, "cluster", 0))
        return num_clusters.suggest_for(points, config, images, seed=seed)


def table(suggestion: Suggestion) -> str:
    """A line per number of clusters, with its silhouette as a bar."""
    lines = ["clusters  silhouette  stability"]
    for trial in suggestion.trials:
        number, silhouette, stability = trial
        mark = ""
        if suggestion.smallest <= number <= suggestion.largest:
            mark = "best" if trial == suggestion.best else "plausible"
        elif suggestion.finer and suggestion.finer[0] <= number <= suggestion.finer[1]:
            mark = "plausible on a finer scale"
        bar = "#" * round(BAR * max(0, silhouette))
        lines.append(f"{number:8}  {silhouette:10.3f}  {stability:9.2f}  {bar} {mark}".rstrip())
    return "\n".join(lines)


def draw(suggestion: Suggestion, output: Path) -> None:
    """Write the chart, making folders as needed.

    Raises:
        InputError: It cannot be written there.
    """
    from vitdc.report.figures import draw_num_clusters, figure_png

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(figure_png(draw_num_clusters(suggestion)))
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written: {error.strerror}") from None
