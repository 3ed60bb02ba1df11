"""`vitdc promote`: which version of a registered model is the champion."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vitdc.tracking import Decision

KEPT = 3  # exit code, with --exit-code


@click.command("promote")
@click.argument("model", required=False)
@click.option("--alias", default="champion", show_default=True, help="The alias to move.")
@click.option(
    "--metric",
    type=click.Choice(["nmi_test", "ari_test", "acc_test"]),
    default="nmi_test",
    show_default=True,
    help="The score to compare, of the test images.",
)
@click.option(
    "--margin",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How much the score must rise by, and more. 0 takes any improvement; on few test images,"
    " where chance makes a difference of some hundredths, ask for more than that.",
)
@click.option(
    "--dataset",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Score both models anew on the test split of this prepared data set (`vitdc prepare`).",
)
@click.option("--dry-run", is_flag=True, help="Decide only; change and record nothing.")
@click.option(
    "--exit-code", is_flag=True, help=f"End with {KEPT} if the champion stays, for use in CI."
)
def command(
    model: str | None,
    alias: str,
    metric: str,
    margin: float,
    dataset: Path | None,
    dry_run: bool,
    exit_code: bool,
) -> None:
    """Make a model the champion if it is better than the present one.

    MODEL is NAME, NAME/VERSION, models:/NAME/VERSION or the id of a run that registered its model;
    without a version the newest one counts, and without MODEL the only registered model. Where
    MLflow is says MLFLOW_TRACKING_URI.

    The scores must be of the same test images; a hash tells. If they are not, name a data set that
    both models can be scored on. While there is no champion, the best version on the test images of
    the newest becomes it.

    The decision, both scores and who made it are recorded at the version and at its run. Use the
    champion as models:/NAME@champion.
    """
    from vitdc.tracking import promote

    decision = promote(
        model, alias=alias, metric=metric, margin=margin, dataset=dataset, dry_run=dry_run
    )
    click.echo(describe(decision, dry_run=dry_run))
    if exit_code and not decision.promoted:
        sys.exit(KEPT)


def describe(decision: Decision, *, dry_run: bool) -> str:
    """What was compared and what came of it, in a few lines."""
    rival = decision.champion if decision.champion != decision.version else None
    lines = [f"{decision.model}: version {decision.version}"]
    if rival is not None:
        lines[0] += f" against version {rival}"
        lines.append(
            f"  {decision.metric:9} {decision.score:.4f} against {decision.champion_score:.4f}:"
            f" {decision.difference:+.4f}, needed: more than {decision.margin:g}"
        )
    elif decision.score is not None:
        lines.append(f"  {decision.metric:9} {decision.score:.4f}")
    else:
        lines.append(f"  {decision.metric:9} none: its test images had no labels")
    if decision.test_data:
        lines.append(f"  {'test data':9} {decision.test_data[:12]}")
    lines.append(f"{_verdict(decision)}{'; nothing was changed (dry run)' if dry_run else ''}")
    return "\n".join(lines)


def _verdict(decision: Decision) -> str:
    if decision.version == decision.champion:
        return f"kept: version {decision.version} has the alias {decision.alias} already"
    if not decision.promoted:
        return f"kept: {decision.alias} stays version {decision.champion}"
    first = " (the first one)" if decision.champion is None else ""
    return f"promoted: {decision.alias} is version {decision.version}{first}"
