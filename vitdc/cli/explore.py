"""`vitdc explore`: look through the clusters of a run in the browser."""

from __future__ import annotations

from pathlib import Path

import click

from vitdc.cli.options import dataset_option, results_argument, rounds_option


@click.command("explore")
@results_argument
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Port on 127.0.0.1; an error if it is taken. Default: 8790, or a free one.",
)
@click.option(
    "--open/--no-open",
    "open_browser",
    default=True,
    show_default=True,
    help="Open the page in this machine's browser.",
)
@dataset_option
@rounds_option
def command(
    results: Path, port: int | None, open_browser: bool, dataset: Path | None, rounds: Path | None
) -> None:
    """Look through the clusters of a results directory in the browser, name and correct them.

    The page is served on this machine only and takes nothing from the network. It shows the
    clusters with the most typical images first, the 2-D map, what moved between the rounds,
    outliers, and the images most like another one, which may be a file of your own.

    Names, merges and images marked wrong are kept in RESULTS.annotations.json beside the results
    at once; `vitdc predict` uses the names. The page exports them as CSV.

    RESULTS is what `vitdc evaluate`, `vitdc run` or `dvc repro` wrote (default: results). The
    images and rounds it was made from are needed too, and are checked to be the same ones.
    Thumbnails and the map are cached in $XDG_CACHE_HOME/vitdc (usually ~/.cache/vitdc).
    """
    from vitdc.explore.finding import find_run
    from vitdc.explore.serving import serve

    serve(find_run(results, dataset=dataset, rounds=rounds), port=port, open_browser=open_browser)
