"""The command line: one subcommand per step, and one clear line when something is wrong."""

from __future__ import annotations

import inspect
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest
import toys
from toys import ToyRun, contents

from vitdc import cli, loop, steps
from vitdc.artifacts import Dataset, Evaluation
from vitdc.cli import COMMANDS, OTHERS
from vitdc.cli.steps import parse_docstring
from vitdc.config import Params
from vitdc.scratch import alone

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{step.__name__: step for step in steps.STEPS},
    "refine": loop.refine,
}
SECTION_TYPES = {type(getattr(Params(), name)) for name in Params.section_names()}
TOY_PARAMS = """
model: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}
pretraining:
  epochs: 3
  batch_size: 16
  learning_rate: 3e-3
  self_supervised: {epochs: 3, batch_size: 16, learning_rate: 3e-3}
clustering: {num_clusters: 3, num_restarts: 3, num_iterations: 20}
joint: {epochs: 1, batch_size: 16, learning_rate: 1e-3, gamma: 0.5}
convergence: {epsilon: 0, max_rounds: 2}
evaluation: {gallery_size: 2, map_points: 20}
compute: {device: cpu, num_threads: 1, embedding_batch_size: 20}
tracking: {enabled: false}
"""

Vitdc = Callable[..., int]


@pytest.fixture
def vitdc(vitdc: Vitdc, tmp_path: Path) -> Vitdc:
    """Runs the program in this process, in a folder with params.yaml; gives the exit code."""
    (tmp_path / "params.yaml").write_text(TOY_PARAMS)
    return vitdc


def command(name: str) -> click.Command:
    found = cli.cli.get_command(click.Context(cli.cli), name)
    assert found is not None
    return found


# --- the commands are the steps ----------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_is_the_first_sentence_of_its_docstring(name: str) -> None:
    function = cli.find_command(name).callback if name in OTHERS else FUNCTIONS[name]
    first_paragraph = (inspect.getdoc(function) or "").split("\n\n")[0]
    assert COMMANDS[name] == " ".join(first_paragraph.split())


def test_every_step_has_a_command() -> None:
    assert set(COMMANDS) == {*FUNCTIONS, *OTHERS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_of_a_step_is_an_option_or_a_section(name: str) -> None:
    hints = get_type_hints(FUNCTIONS[name])
    sections = {key for key, hint in hints.items() if hint in SECTION_TYPES}
    given = hints.keys() - sections - {"seed", "on_listed", "on_round", "watcher", "return"}
    extra = {"rounds"} if name == "evaluate" else set()
    options = sorted(str(option.name) for option in command(name).params)
    assert options == sorted([*given, *extra, "params_file", "overrides"])
    assert sections <= set(Params.model_fields)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_option_is_explained_and_required_as_in_the_signature(name: str) -> None:
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    for option in command(name).params:
        assert isinstance(option, click.Option)
        assert option.help, option.name
        if option.name in parameters and name != "evaluate":
            needed = parameters[option.name].default is inspect.Parameter.empty
            assert option.required == needed, option.name


def toy_function() -> None:
    """Do one thing.

    And say more about it,
    on two lines.

    Args:
        first: Of one line.
        second: Of two lines: the
            second one.

    Returns:
        Nothing: at all.
    """


def test_docstrings_are_taken_apart() -> None:
    description, arguments = parse_docstring(toy_function)
    assert description == "Do one thing.\n\nAnd say more about it,\non two lines."
    assert arguments == {"first": "Of one line.", "second": "Of two lines: the second one."}


def test_a_function_without_arguments_has_only_a_description() -> None:
    def function() -> None:
        """Do it."""

    assert parse_docstring(function) == ("Do it.", {})


# --- help --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["params", "joint"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"torch", "timm", "faiss", "mlflow", "sklearn", "scipy", "matplotlib"}
    if arguments == ["--help"]:
        heavy |= {"numpy", "pydantic", "yaml"}
    script = (
        "import sys\nfrom vitdc.cli import cli\n"
        "cli.main(sys.argv[1:], standalone_mode=False)\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_command(vitdc: Vitdc, capsys: pytest.CaptureFixture[str]) -> None:
    assert vitdc("--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(
    vitdc: Vitdc, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert vitdc(name, "--help") == 0
    assert f"Usage: vitdc {name}" in capsys.readouterr().out


def test_params_explains_every_field(vitdc: Vitdc, capsys: pytest.CaptureFixture[str]) -> None:
    assert vitdc("params") == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    assert "seed = 0" in text
    for section in Params.section_names():
        assert f"\n{section}:" in text
        for name, field in type(getattr(Params(), section)).model_fields.items():
            assert f"  {name} = " in text or f"  {name}\n" in text  # a section in the section
            assert " ".join((field.description or "").split()) in words


def test_params_explains_sections_in_sections_once_and_shows_all_their_defaults(
    vitdc: Vitdc, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vitdc("params", "kubernetes") == 0
    text = capsys.readouterr().out
    assert '  resources.prepare.cpu = "1"\n' in text
    assert '  resources.check = {"cpu": "250m"' in text
    assert text.count("thousandths") == 1


def test_params_explains_one_section_alone(
    vitdc: Vitdc, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vitdc("params", "convergence") == 0
    text = capsys.readouterr().out
    assert "epsilon = 0.01" in text
    assert "gamma" not in text


def test_output_is_utf_8_whatever_the_locale_and_control_characters_are_written_out(
    tmp_path: Path,
) -> None:
    variables = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    variables.pop("PYTHONIOENCODING", None)
    script = (
        "import logging, click\nfrom vitdc import cli\n"
        "@click.command()\n@click.argument('name')\ndef command(name):\n"
        "    click.echo('\\u00fcbung')\n"
        "    click.echo(name)\n"
        "    logging.getLogger('vitdc.data').warning('%s: \\u65e5\\u672c', name)\n"
        "    raise click.UsageError(name)\n"
        "cli.run_group(command, prog_name='vitdc')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, b"caf\xe9\x1b\x07"], env=variables, capture_output=True
    )
    assert done.stdout.decode().splitlines() == ["\u00fcbung", "caf\\udce9\x1b\x07"]
    shown = r"caf\xe9\x1b\x07"
    assert done.stderr.decode().startswith(f"{shown}: \u65e5\u672c\nUsage: vitdc ")
    assert done.stderr.decode().endswith(f"\nError: {shown}\n")
    assert done.returncode == 2


def test_a_terminal_gets_no_control_character_with_the_lines() -> None:
    stream = io.TextIOWrapper(io.BytesIO())
    terminal = cli._Terminal(stream)
    terminal.write("image,cluster\na\x1b[31m.png,1\n")
    terminal.flush()
    assert stream.buffer.getvalue() == b"image,cluster\na\\x1b[31m.png,1\n"  # type: ignore[attr-defined]


# --- exit codes --------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vitdc: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "-S", "joint.gama=1"], "did you mean joint.gamma?"),
        (["prepare", "-S", "joint.gamma"], "-S joint.gamma: write it as section.key=value"),
        (["prepare", "-S", "data.source=nowhere"], "unknown source 'nowhere'"),
        (["prepare", "--params", "other.yaml"], "other.yaml: no such parameter file"),
        (["prepare", "--output", "."], "cannot be written"),
        (["pretrain", "--dataset", "nowhere"], "nowhere: no dataset here"),
        (["refine", "--dataset", "nowhere", "--checkpoint", "x"], "nowhere: no dataset here"),
        (["evaluate", "--dataset", "x", "--rounds", "nowhere"], "no finished rounds here"),
        (["summary", "nowhere"], "nowhere: no evaluation here"),
        (["params", "nothing"], "no section 'nothing'; valid are data, model"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    vitdc: Vitdc,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    if arguments[0] not in OTHERS and "--output" not in arguments:
        arguments = [*arguments, "--output", "out"]
    assert vitdc(*arguments) == 2
    assert message in refused(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["embed", "--output", "out"],
        ["embed", "--colour", "red"],
        ["evaluate", "--dataset", "x", "--output", "out"],
        ["evaluate", "--dataset", "x", "--output", "out", "--rounds", "r", "--last", "l"],
        ["evaluate", "--dataset", "x", "--output", "out", "--last", "l"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(
    vitdc: Vitdc, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert vitdc(*arguments) == 2
    err = capsys.readouterr().err
    assert "Error: " in err
    assert "Traceback" not in err


def test_a_person_s_own_folder_is_never_replaced(
    vitdc: Vitdc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("precious")
    assert vitdc("prepare", "--output", "photos") == 2
    assert "photos: exists and was not written by vitdc" in refused(capsys)
    assert (tmp_path / "photos" / "holiday.jpg").read_text() == "precious"


def test_a_failure_while_running_is_one_line_and_exit_code_1(
    vitdc: Vitdc,
    toy_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    not_a_number = lambda images, config: images * float("nan")  # noqa: E731
    monkeypatch.setattr("vitdc.objectives.supervised.augment", not_a_number)
    assert vitdc("pretrain", "--dataset", toy_dataset, "--output", "out") == 1
    assert "the loss is not finite in round 0, epoch 1, step 1" in refused(capsys)
    assert not Path("out").exists()


def test_an_interruption_is_said_in_one_line(
    vitdc: Vitdc, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vitdc.data.write_dataset", toys.interrupt)
    assert vitdc("prepare", "--output", "out") == 130
    assert capsys.readouterr().err.strip() == (  # click ends the line that shows ^C
        "vitdc: interrupted; nothing half-written is left"
    )


def test_sigterm_removes_what_is_half_written(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "import vitdc.data\nfrom vitdc import artifacts, cli\n"
        "def killed(config, *, output, **options):\n"
        "    with artifacts.writing(output, 'dataset', {}) as writer:\n"
        "        (writer.directory / 'half').write_text('half')\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "vitdc.data.write_dataset = killed\n"
        "sys.argv = ['vitdc', 'prepare', '--output', 'out']\n"
        "cli.main()"
    )
    (tmp_path / "params.yaml").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


# --- whole commands ----------------------------------------------------------------------------


def test_commands_do_what_the_steps_do(
    vitdc: Vitdc, toy_run: ToyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = ["--dataset", toy_run.dataset]
    assert vitdc("pretrain", *dataset, "--output", "pretrained") == 0
    assert vitdc("refine", *dataset, "--checkpoint", "pretrained", "--output", "rounds") == 0
    capsys.readouterr()
    assert vitdc("evaluate", *dataset, "--rounds", "rounds", "--output", "results") == 0
    assert contents(Path("rounds")) == contents(toy_run.rounds)
    assert contents(Path("results")) == contents(toy_run.results)
    assert "test NMI" in capsys.readouterr().out

    each = {
        name: f"rounds/0{number}" for number, name in enumerate(("initial", "previous", "last"))
    }
    options = [part for name, path in each.items() for part in (f"--{name}", path)]
    options += ["--round", "rounds/02/round", "--output", "again"]
    assert vitdc("evaluate", *dataset, *options) == 0
    assert contents(Path("again")) == contents(toy_run.results)

    capsys.readouterr()
    assert vitdc("summary", "again") == 0
    assert "stopped by" in capsys.readouterr().out


def test_run_takes_the_method_from_the_images_to_the_report(
    vitdc: Vitdc, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["-S", "data.max_train=40", "-S", "data.max_test=20", "-S", "seed=3"]
    assert vitdc("run", "--output", "here", *small) == 0
    assert len(Dataset.load(Path("here/dataset")).train) == 40
    evaluation = Evaluation.load(Path("here/results"))
    assert evaluation.metrics["rounds"] == len(evaluation.rows) - 1
    assert contents(Path("here/scratch")) == {}
    first = contents(Path("here/results"))
    assert vitdc("run", "--output", "here", *small) == 0
    assert contents(Path("here/results")) == first


def test_a_second_run_into_the_same_output_is_refused(
    vitdc: Vitdc, capsys: pytest.CaptureFixture[str]
) -> None:
    with alone(Path("here")):
        assert vitdc("run", "--output", "here") == 2
    assert refused(capsys).startswith(f"vitdc: here: process {os.getpid()} on ")
    assert not Path("here").exists()


def test_a_file_that_ends_too_early_is_no_interruption(
    vitdc: Vitdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: object) -> None:
        raise EOFError("No data left in file")

    monkeypatch.setattr("vitdc.config.Params.load", read)
    with pytest.raises(EOFError, match="No data left"):
        vitdc("run", "--output", "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("clustering.num_clusters=4", "4 clusters cannot be made of 3 training images"),
        ("model.patch_size=2", "into 12544 tokens, more than 4096; take 16"),
        ("model.pretrained=weights.pth", "weights.pth is a pickle"),
        ("data.labels=full", "3 of the 3 training images have no label"),
    ],
)
def test_run_refuses_what_cannot_follow_before_it_decodes_an_image(
    vitdc: Vitdc, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    for name in ("weights.pth", *(f"photos/{number}.jpg" for number in range(4))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("decoding this would be another error")
    folder = ["-S", "data.source=folder", "-S", "data.root=photos", "-S", "data.image_size=224"]
    assert vitdc("run", "--output", "here", *folder, "-S", change) == 2
    assert message in refused(capsys)
    assert not Path("here/dataset").exists()


def test_a_run_that_was_interrupted_in_the_rounds_does_not_train_round_0_again(
    vitdc: Vitdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["-S", "data.max_train=20", "-S", "data.max_test=10", "-S", "convergence.max_rounds=1"]
    assert vitdc("run", "--output", "whole", *small) == 0
    with monkeypatch.context() as patch:
        patch.setattr("vitdc.loop.refine", toys.interrupt)
        assert vitdc("run", "--output", "cut", *small) == 130
    with monkeypatch.context() as patch:
        patch.setattr("vitdc.objectives.choose_initial", None)  # the initial training needs it
        assert vitdc("run", "--output", "cut", *small) == 0
    assert contents(Path("cut/results")) == contents(Path("whole/results"))
    assert vitdc("run", "--output", "cut", "-S", "seed=1", *small) == 0
    assert contents(Path("cut/results")) != contents(Path("whole/results"))


def test_reuse_takes_round_0_of_an_earlier_run_and_changes_no_result(
    vitdc: Vitdc, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["-S", "data.max_train=20", "-S", "data.max_test=10", "-S", "convergence.max_rounds=2"]
    other = [*small, "-S", "clustering.num_clusters=20"]  # as many as training images
    assert vitdc("run", "--output", "three", *small) == 0
    assert vitdc("run", "--output", "twenty", *other) == 0
    monkeypatch.setattr(steps, "pretrain", None)
    assert vitdc("run", "--output", "again", "--reuse", "three", *other) == 0
    assert contents(Path("again/results")) == contents(Path("twenty/results"))
    assert "Every cluster holds a single image" in capsys.readouterr().out

    differing = ["-S", "seed=1", "-S", "data.max_train=15"]
    assert vitdc("run", "--output", "no", "--reuse", "three", *small, *differing) == 2
    assert "three/pretrained: cannot be reused, because other than now were the images, seed;" in (
        capsys.readouterr().err
    )
    assert vitdc("run", "--output", "no", "--reuse", "nowhere", *small) == 2
    assert "nowhere/pretrained: no checkpoint here" in capsys.readouterr().err
