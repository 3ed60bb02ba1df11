"""`vitdc params`: what every parameter means."""

from __future__ import annotations

import inspect
import json
import textwrap
from typing import TYPE_CHECKING

import click

from vitdc.errors import InputError

if TYPE_CHECKING:
    from vitdc.config import Section


@click.command("params")
@click.argument("section", required=False)
def command(section: str | None) -> None:
    """Explain every parameter of params.yaml, or of one SECTION, with its default.

    \b
    Set one in params.yaml, or for one command:
      vitdc run -S section.key=value         likewise every step, python -m pipelines
      dvc exp run -S ++section.key=value     where params.yaml has it, -S section.key=value will do
    """
    from vitdc.config import Params

    names = Params.section_names()
    if section is not None and section not in names:
        raise InputError(f"params: no section {section!r}; valid are {', '.join(names)}")
    if section is None:
        click.echo(f"seed = {Params().seed}\n    {Params.model_fields['seed'].description}\n")
    for name in [section] if section else names:
        default = getattr(Params(), name)
        click.echo(f"{name}:  # {inspect.getdoc(type(default))}")
        _explain(default)
        click.echo()


def _explain(default: Section, prefix: str = "") -> None:
    """Print the fields of a section with their defaults; those of a section in it by dotted name.

    Of several inner sections with the same fields, the first is explained in full.
    """
    from vitdc.config import Section

    values = default.model_dump(mode="json")
    explained: set[tuple[str, ...]] = set()
    for key, field in type(default).model_fields.items():
        inner = getattr(default, key)
        names = tuple(type(inner).model_fields) if isinstance(inner, Section) else ()
        in_full = bool(names) and names not in explained
        text = " ".join((field.description or "").split())
        click.echo(f"  {prefix}{key}" + ("" if in_full else f" = {json.dumps(values[key])}"))
        click.echo(textwrap.fill(text, 96, initial_indent="      ", subsequent_indent="      "))
        if in_full:
            explained.add(names)
            _explain(inner, f"{prefix}{key}.")
