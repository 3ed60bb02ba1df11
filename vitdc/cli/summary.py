"""`vitdc summary`: the scores of a results directory."""

from pathlib import Path

import click


@click.command("summary")
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
def command(results: Path) -> None:
    """Print the scores and the rounds of a results directory (default: results)."""
    from vitdc.artifacts import Evaluation
    from vitdc.summary import summarize

    click.echo(summarize(Evaluation.load(results)))
