"""`vitdc compare`: runs beside each other, and whether they differ by more than their seeds do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitdc.errors import InputError

if TYPE_CHECKING:
    from vitdc.comparison import RunResult

EXPERIMENT = "vitdc"
NUM_LISTED = 20


@click.command("compare")
@click.argument("runs", metavar="RUN...", nargs=-1)
@click.option(
    "--baseline",
    metavar="RUN",
    help="Compare with this run's group instead of the first one's.",
)
@click.option(
    "--last",
    type=click.IntRange(min=1),
    metavar="N",
    help="Add the N newest finished runs of an MLflow experiment.",
)
@click.option(
    "--experiment",
    default=EXPERIMENT,
    show_default=True,
    metavar="NAME",
    help="MLflow experiment of --last and --list.",
)
@click.option("--list", "listing", is_flag=True, help="List the newest runs in MLflow, and end.")
@click.option(
    "--across-data",
    is_flag=True,
    help="Pair runs on different data sets, too: you know that their held-out images are the same.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "csv", "json"]),
    default="text",
    show_default=True,
    help="Of what is printed.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a web page with the curves, too: one file that needs no network.",
)
def command(
    runs: tuple[str, ...],
    baseline: str | None,
    last: int | None,
    experiment: str,
    listing: bool,
    across_data: bool,
    form: str,
    output: Path | None,
) -> None:
    """Compare runs: their scores, and whether they differ by more than the noise of the seeds.

    A RUN is an MLflow run (id, its first digits, or name), a DVC experiment, a Git revision, the
    word "workspace", or a results directory; mixed as you like. Where a name fits two of them,
    write mlflow:NAME or dvc:NAME.

    Runs that differ in nothing but the seed are a group. Groups are compared with the group of the
    first RUN by the differences between runs of the same seed: their mean, its standard error, and
    the 95 % confidence interval of Student's t. An interval that contains 0 means that the
    difference is within the noise of the seeds. With one common seed nothing can be said.

    \b
    vitdc compare --list                          # what there is to compare in MLflow
    dvc exp list                                  # and in DVC
    vitdc compare 3f2a 91c0 --output compare.html
    vitdc compare --last 6 --baseline 3f2a        # e.g. 2 settings x 3 seeds
    vitdc compare main gamma-0 workspace          # revisions and DVC experiments
    """
    if listing:
        click.echo(list_runs(experiment, last or NUM_LISTED))
        return
    if not runs and not last:
        raise click.UsageError(
            "name the runs to compare, or --last N. `vitdc compare --list` lists those in MLflow,"
            " `dvc exp list` the experiments of DVC; a results directory or a Git revision do, too."
        )
    from vitdc.comparison import compare
    from vitdc.comparison.tables import FORMATS

    results, first = collect(runs, baseline=baseline, last=last, experiment=experiment)
    comparison = compare(results, baseline=first, across_data=across_data)
    if output is not None:
        from vitdc.report.comparison import render_comparison

        write(output, render_comparison(comparison))
    click.echo(FORMATS[form](comparison), color=True)  # click takes nothing out of names
    if output is not None:
        click.echo(f"\npage: {output}", err=form != "text")


def collect(
    runs: tuple[str, ...], *, baseline: str | None, last: int | None, experiment: str
) -> tuple[list[RunResult], str]:
    """The results of all runs, each once, and the id of the one whose group is the baseline."""
    from vitdc.comparison.finding import find_results, newest_results

    found = find_results([*([baseline] if baseline else []), *runs])
    results = list(found.values())
    if last:
        results += newest_results(experiment, last)
    once = list({result.id: result for result in reversed(results)}.values())[::-1]
    return once, results[0].id


def list_runs(experiment: str, count: int) -> str:
    """The newest runs of an experiment, the newest last, where the prompt follows."""
    from vitdc.comparison.tables import lines_of
    from vitdc.tracking.reading import newest_runs

    runs = newest_runs(experiment, count=count, finished=False, curves=False)
    if not runs:
        raise InputError(
            f"no run in the MLflow experiment {experiment!r} yet; `dvc repro` makes one"
        )
    rows = [
        [
            run.id[:8],
            f"{run.started:%Y-%m-%d %H:%M}",
            run.status,
            f"{run.values['nmi_test']:.3f}" if "nmi_test" in run.values else "-",
            run.name,
        ]
        for run in runs
    ]
    return lines_of([["run", "started", "status", "NMI", "name"], *rows])


def write(path: Path, page: str) -> None:
    """Write the page, making folders as needed.

    Raises:
        InputError: It cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written: {error.strerror}") from None
