"""README.md and the pages beside it name commands, options, parameters and files that exist."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from dvc.utils.hydra import apply_overrides

import pipelines.cli
import vitdc.cli
from vitdc import DeepClustering
from vitdc.config import Params

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "k8s" / "README.md"]
PLACEHOLDER = "section.key"


class Line(NamedTuple):
    """A command of a page, as the shell splits it: one program with its arguments."""

    page: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.M | re.S)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def command_lines(page: Path) -> Iterator[Line]:
    name = str(page.relative_to(ROOT))
    for block in blocks(page, "bash"):
        block = re.sub(r"<<'(\w+)'\n.*?^\1$", "", block, flags=re.M | re.S)  # what a program reads
        block = re.sub(r"\\\n", " ", block).replace("|\n", "| ")
        for text in block.splitlines():
            for words in simple_commands(text):
                yield Line(name, words)


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of every program in a line of shell, without variables and redirections."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();|&<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();|&"):
            while words and re.match(r"\w+=|(do|then|if|while|sudo)$", words[0]):
                del words[0]
            if words:
                yield words
            words = []
        elif words and words[-1] in ("<", ">", "<<", ">>"):
            del words[-1]
        else:
            words.append(word)


LINES = [line for page in PAGES for line in command_lines(page)]


def own_command(line: Line) -> list[str]:
    """`vitdc ...` or `python -m pipelines ...`, also where a benchmark starts it; else nothing."""
    words = line.words
    if words[0] == "python" and words[1].startswith("benchmarks/"):
        words = words[2:]
    return words if words[:1] == ["vitdc"] or words[:3] == ["python", "-m", "pipelines"] else []


def parse(words: list[str]) -> click.Context:
    """What click makes of a line; it raises what it would say to a person."""
    if words[0] == "vitdc":
        name, arguments, group = words[1], words[2:], vitdc.cli.cli
    else:
        name, arguments, group = words[3], words[4:], pipelines.cli.cli
    command = group.get_command(click.Context(group), name)
    assert command, f"there is no command {name}"
    return command.make_context(name, arguments)


def overrides(words: list[str]) -> list[str]:
    """The values of -S, whoever takes it."""
    given = [value for flag, value in pairwise(words) if flag in ("-S", "--set")]
    return [re.sub(r"\$\w+", "0", value) for value in given]


def is_field(name: str) -> bool:
    section, _, key = name.partition(".")
    if not key:
        return section in Params.model_fields
    field = Params.model_fields.get(section)
    return field is not None and key in getattr(field.annotation, "model_fields", ())


@pytest.mark.parametrize("line", [each for each in LINES if own_command(each)], ids=str)
def test_a_command_can_be_typed_as_it_stands(line: Line) -> None:
    context = parse([re.sub(r"\$\w+", "0", word) for word in own_command(line)])
    if "params_file" in context.params:
        Params.load(ROOT / context.params["params_file"], context.params["overrides"])


@pytest.mark.parametrize(
    "line", [each for each in LINES if each.words[:3] == ["dvc", "exp", "run"]], ids=str
)
def test_dvc_accepts_what_an_experiment_changes(line: Line, tmp_path: Path) -> None:
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
    apply_overrides(params, overrides(line.words))
    Params.load(params)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPage:
    def test_every_parameter_it_sets_exists(self, page: Path) -> None:
        names = set(re.findall(r"-S \"?\+*([a-z_]+(?:\.[a-z_]+)?)=", page.read_text()))
        assert {name for name in names - {PLACEHOLDER} if not is_field(name)} == set()

    def test_every_command_it_mentions_exists(self, page: Path) -> None:
        mentioned = set(re.findall(r"`vitdc ([a-z][a-z-]*)", page.read_text()))
        assert mentioned <= set(vitdc.cli.COMMANDS)

    def test_every_make_target_exists(self, page: Path) -> None:
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        lines = [line.words for line in command_lines(page) if line.words[0] == "make"]
        lines += [span.split() for span in re.findall(r"`(make [^`]*)`", page.read_text())]
        used = {word for words in lines for word in words[1:] if "=" not in word}
        assert used <= targets

    def test_every_program_of_the_repository_exists_with_its_options(self, page: Path) -> None:
        for program, rest in re.findall(
            r"python ((?:benchmarks|tests)/\w+\.py)([^`\n]*)", page.read_text()
        ):
            source = (ROOT / program).read_text()
            own = re.split(r"\bvitdc |#", rest)[0]  # a command that the program runs has its own
            for flag in re.findall(r"--[a-z][a-z-]*", own):
                assert f'"{flag}"' in source, f"{program} {flag}"

    def test_every_link_and_picture_leads_somewhere(self, page: Path) -> None:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target

    def test_every_manifest_it_applies_exists(self, page: Path) -> None:
        for path in re.findall(r"kubectl \w+ -[kf] (k8s/\S+?)[`)\s]", page.read_text()):
            assert (ROOT / path).exists(), path

    def test_the_arguments_of_the_estimator_exist(self, page: Path) -> None:
        known = set(inspect.signature(DeepClustering).parameters)
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "DeepClustering":
                    assert {keyword.arg for keyword in node.keywords} <= known


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_every_page_and_every_picture_is_shown_by_another() -> None:
    shown = set()
    for page in PAGES:
        targets = re.findall(r"\]\(([^)\s#]+)", page.read_text())
        shown |= {(page.parent / target).resolve() for target in targets if "://" not in target}
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    assert {*pictures, *PAGES} - {ROOT / "README.md"} <= shown


def test_the_tree_names_files_that_there_are() -> None:
    tree = re.search(r"^    Makefile .*\n(?:    .*\n)+", (ROOT / "README.md").read_text(), re.M)
    assert tree
    folders: list[str] = []  # the folder of every level of indentation
    for indent, name in re.findall(r"^( +)(\S+)", tree[0], re.MULTILINE):
        level = len(indent) // 2 - 2
        folders[level:] = [name]
        assert ROOT.joinpath(*folders).exists(), "/".join(folders)


def test_ci_runs_the_tests_that_the_readme_names() -> None:
    (block,) = (b for b in blocks(ROOT / "README.md", "bash") if "make test-services" in b)
    named = set(re.findall(r"^make \S+", block, re.MULTILINE))
    run = re.findall(r"make \S+", (ROOT / ".ci" / "run").read_text())
    assert {"make test", "make lint"} <= named
    assert named - set(run) == {"make test-cluster"}  # CI has no cluster


def test_make_lists_every_target() -> None:
    command = ["make", "--no-print-directory"]  # which it prints when make runs the tests
    listed = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert {line.split()[0] for line in listed} == set(phony[1].split())
