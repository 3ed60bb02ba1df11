"""The command line: a subcommand per step, generated from the step's signature, and a few more.

Nothing heavy is imported before a command runs, so `vitdc --help` answers at once; that is why the
one-line descriptions stand here again (a test holds them to the docstrings).

steps       the commands of the steps
options     what several commands share
NAME        the command NAME, for all others, as `command`; suggest-k is suggest_k
"""

from __future__ import annotations

import io
import logging
import os
import sys
from importlib import import_module
from typing import NoReturn, TextIO

import click

from vitdc.cli.options import PARAMS_OPTIONS
from vitdc.errors import (
    InputError,
    TrainingError,
    end_on_sigterm,
    exit_code,
    explaining_disk,
)
from vitdc.names import printable, printable_lines

__all__ = ["COMMANDS", "OTHERS", "PARAMS_OPTIONS", "cli", "find_command", "main", "run_group"]

COMMANDS = {
    "prepare": "Read images from their source into the prepared format.",
    "pretrain": "Train the ViT, on labels (eq. 1-5) or on none; the result is round 0.",
    "embed": "Embed every image of both splits, with its cross-entropy and what the head predicts.",
    "cluster": "Cluster the training embeddings; test images go to their nearest centroid.",
    "retrain": "Train on with the joint loss (eq. 8), against the frozen clusters of the round"
    " before.",
    "check": "Compute the exact joint loss of a round and decide whether the rounds go on.",
    "evaluate": "Score the best round, draw the pictures and write the report.",
    "refine": "Run the rounds until the joint loss stops falling by epsilon (section 3.2 of the"
    " paper).",
    "run": "Run the whole method in one process, from the images to the report.",
    "estimate": "Say how many seconds, and how much memory and disk, a run takes on this machine.",
    "summary": "Print the scores and the rounds of a results directory (default: results).",
    "compare": "Compare runs: their scores, and whether they differ by more than the noise of the"
    " seeds.",
    "explore": "Look through the clusters of a results directory in the browser, name and correct"
    " them.",
    "suggest-k": "Say how many clusters the images of a run plausibly have.",
    "predict": "Find the clusters of new images with the model of a run.",
    "export": "Write a model as ONNX, as a torch.export archive or as safetensors.",
    "promote": "Make a model the champion if it is better than the present one.",
    "track": "Show what MLflow has not taken yet, or deliver it.",
    "params": "Explain every parameter of params.yaml, or of one SECTION, with its default.",
}
# each in a module of its name, with _ for -
OTHERS = (
    *("run", "estimate", "summary", "compare", "explore", "suggest-k", "predict", "export"),
    *("promote", "track", "params"),
)


def find_command(name: str) -> click.Command:
    """The subcommand of that name, built or imported when it is needed."""
    if name in OTHERS:
        command: click.Command = import_module(f"vitdc.cli.{name.replace('-', '_')}").command
        return command
    from vitdc.cli.steps import step_command

    return step_command(name)


class LazyGroup(click.Group):
    """A group that knows its commands' names and lines, and builds a command when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return find_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vitdc")
def cli() -> None:
    """Deep clustering of images with a Vision Transformer.

    The whole method is `dvc repro` (or `make demo`), which calls prepare, pretrain, embed,
    refine and evaluate. `vitdc run` does the same in one process. Parameters come from params.yaml;
    -S section.key=value changes one for a single command.
    """


class _Message(logging.Formatter):
    """The message alone, with the names in it made harmless; ours are one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's name
        ours = record.name.partition(".")[0] == "vitdc"
        return (printable if ours else printable_lines)(record.message)


class _Terminal(io.TextIOWrapper):
    """Standard output on a terminal, which gets no control character but the ends of lines."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.buffer, "utf-8", "backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        return super().write(printable_lines(text))


def main() -> NoReturn:
    """Entry point of `vitdc`."""
    if sys.stdout.isatty():  # tables for programs hold names as they are
        sys.stdout = _Terminal(sys.stdout)
    run_group(cli, prog_name="vitdc")


def run_group(group: click.Group, *, prog_name: str) -> NoReturn:
    """Run a command line: 0 done, 1 failed while running, 2 wrong input or configuration."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale says
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Message())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("vitdc").setLevel(logging.INFO)
    # OpenMP threads that spin while they wait make every other process crawl, and on a machine
    # that is shared they are made to crawl themselves. Read when torch and faiss are loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    end_on_sigterm()
    try:
        with explaining_disk():
            group.main(prog_name=prog_name, standalone_mode=False)
    except click.ClickException as error:
        error.show(text := io.StringIO())
        click.echo(printable_lines(text.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except (InputError, TrainingError) as error:
        click.echo(f"vitdc: {error}", err=True)
        sys.exit(exit_code(error))
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # a broken file, which click takes for Ctrl-D
            raise error.__cause__ from None
        click.echo("vitdc: interrupted; nothing half-written is left", err=True)
        sys.exit(130)
    sys.exit(0)
