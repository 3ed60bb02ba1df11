"""The parameter file: what is accepted, and what a person reads when it is not."""

from __future__ import annotations

import shutil
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from hypothesis import given
from hypothesis import strategies as st

from vitdc.config import DataConfig, JointConfig, ModelConfig, Params
from vitdc.errors import InputError

ROOT = Path(__file__).parent.parent
TEXTS = [
    *(
        "batch #2",
        "a: b",
        "a:b",
        "[raw] scans",
        "{x}",
        "*all",
        "- list",
        "-dash",
        "@home",
        "`tick`",
    ),
    *("2024", "2024-01-15", "0123", "1e3", "1_000", "1:30", "no", "yes", "null", "~", "100%"),
    *("'quoted'", '"quoted"', "Ann's", "a=b", "a,b", "a & b", "\u00fcbung", " space "),
]
"""Names that people give to folders, and YAML has another meaning for."""


def write(directory: Path, text: str) -> Path:
    path = directory / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def parse(**sections: Any) -> Params:
    return Params.parse(sections, where="params.yaml")


def refusal(**sections: Any) -> str:
    with pytest.raises(InputError) as caught:
        parse(**sections)
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "joint:\ndata:\n", "{}"])
def test_empty_files_and_sections_mean_the_defaults(tmp_path: Path, text: str) -> None:
    assert Params.load(write(tmp_path, text)) == Params()


def test_every_default_passes_its_own_check() -> None:
    assert Params.parse(Params().model_dump(), where="defaults") == Params()


def test_every_field_is_documented() -> None:
    for section in Params.section_names():
        for name, field in type(getattr(Params(), section)).model_fields.items():
            assert field.description, f"{section}.{name}"


@pytest.mark.parametrize(
    ("sections", "unknown", "nearest"),
    [
        ({"joint": {"gama": 1}}, "joint.gama", "joint.gamma"),
        ({"gamma": 1}, "gamma", "joint.gamma"),
        ({"joint": {"num_clusters": 3}}, "joint.num_clusters", "clustering.num_clusters"),
        ({"pretrainin": {}}, "pretrainin", "pretraining"),
        ({"seeed": 1}, "seeed", "seed"),
    ],
)
def test_unknown_key_names_the_nearest_valid_one(
    sections: dict[str, Any], unknown: str, nearest: str
) -> None:
    message = refusal(**sections)
    assert f"unknown parameter {unknown};" in message
    assert f"did you mean {nearest}?" in message


def test_unknown_key_like_no_other_lists_what_is_valid() -> None:
    message = refusal(convergence={"zzz": 1})
    assert "valid are convergence.epsilon, convergence.min_changed, convergence.max" in message


@pytest.mark.parametrize("value", [32, 32.0, "32"])
def test_whole_numbers_pass_as_doubles_and_as_text(value: Any) -> None:
    epochs = parse(joint={"epochs": value}).joint.epochs
    assert epochs == 32
    assert isinstance(epochs, int)


def test_channels_may_arrive_as_a_double() -> None:
    assert DataConfig.parse({"channels": 3.0}, where="test").channels == 3


@given(st.floats(0, 1e6).filter(lambda value: value != int(value)))
def test_fractions_are_no_integers(value: float) -> None:
    assert "joint.epochs: input should be a valid integer" in refusal(joint={"epochs": value})


@pytest.mark.parametrize(
    ("section", "key"),
    [("joint", "epochs"), ("joint", "gamma"), ("joint", "shift"), ("data", "channels")],
)
def test_bool_is_not_a_number(section: str, key: str) -> None:
    assert f"{section}.{key}: a number is needed" in refusal(**{section: {key: True}})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("joint", "epochs", -1),
        ("joint", "batch_size", 0),
        ("joint", "learning_rate", 0),
        ("joint", "gamma", -0.1),
        ("joint", "gamma", float("nan")),
        ("joint", "gamma", float("inf")),
        ("joint", "shift", 1.0),
        ("joint", "rotate", 181),
        ("joint", "rotate", float("nan")),
        ("joint", "flip", "maybe"),
        ("data", "test_fraction", 1.0),
        ("data", "channels", 2),
        ("data", "source", 3),
        ("data", "fit", "squash"),
        ("data", "background", "whit"),
        ("data", "background", "#ffffff80"),
        ("data", "pixel_range", [4095, 0]),
        ("model", "pooling", "max"),
        ("model", "normalize", "perhaps"),
        ("clustering", "num_clusters", 0),
        ("compute", "device", "tpu"),
        ("compute", "num_threads", None),
    ],
)
def test_wrong_types_and_ranges_name_file_parameter_and_value(
    section: str, key: str, value: Any
) -> None:
    message = refusal(**{section: {key: value}})
    assert message.startswith(f"params.yaml: {section}.{key}: ")
    assert message.endswith(f"(got {value!r})")
    assert "\n" not in message


def test_dvc_needs_a_path_and_no_other_source_takes_what_belongs_to_it() -> None:
    assert parse(data={"source": "dvc", "path": "images"}).data.rev is None
    assert "data.path: needed with source: dvc" in refusal(data={"source": "dvc"})
    for key in ("repo", "rev", "path"):
        message = refusal(data={"source": "folder", key: "x"})
        assert message.startswith(f"params.yaml: data.{key}: only source: dvc reads it, and the")
        assert f"data.{key}: string should have at least" in refusal(
            data={"source": "dvc", key: ""}
        )


def test_all_problems_are_named_at_once() -> None:
    message = refusal(joint={"gamma": -1, "epochs": "x"}, data={"colour": 1})
    assert all(name in message for name in ("joint.gamma", "joint.epochs", "data.colour"))


@pytest.mark.parametrize("value", [3, [1], "text"])
def test_a_section_must_be_a_mapping(value: Any) -> None:
    assert "params.yaml: joint: " in refusal(joint=value)


def test_yaml_reads_exponents_without_a_point_as_numbers_too(tmp_path: Path) -> None:
    path = write(tmp_path, "joint: {learning_rate: 1e-3, gamma: 2E-1}")
    joint = Params.load(path).joint
    assert (joint.learning_rate, joint.gamma) == (1e-3, 0.2)


@pytest.mark.parametrize("text", ["a: [", "\tjoint: 1", "- 1", "just text"])
def test_what_is_not_a_mapping_in_yaml_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        Params.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such parameter file"):
        Params.load(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        Params.load(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        Params.load(binary)


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("joint.gamma=0", "joint", "gamma", 0),
        ("joint.gamma=1e-3", "joint", "gamma", 1e-3),
        ("data.source=s3://bucket/a?b=c", "data", "source", "s3://bucket/a?b=c"),
        ("data.root=", "data", "root", None),
        ("model.normalize=false", "model", "normalize", False),
    ],
)
def test_overrides_change_one_parameter_and_keep_the_others(
    tmp_path: Path, override: str, section: str, key: str, value: Any
) -> None:
    path = write(tmp_path, "joint: {gamma: 0.5, epochs: 7}\ndata: {root: images, seed: 5}")
    params = Params.load(path, [override])
    before = Params.load(path).model_dump()
    before[section][key] = value
    assert params.model_dump() == before


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_is_typed(tmp_path: Path, text: str) -> None:
    knobs = ("data.root", "model.pretrained", "tracking.run_name", "tracking.experiment")
    params = Params.load(write(tmp_path, ""), [f"{knob}={text}" for knob in knobs])
    assert [attrgetter(knob)(params) for knob in knobs] == [text] * len(knobs)


@pytest.mark.parametrize(
    ("written", "root"),
    [
        *((text, text) for text in ("no", "0123", "1:30", "1e3", "2024-01-15", "2024")),
        *((text, None) for text in ("null", "~", "")),
        ("'null'", "null"),
    ],
)
def test_text_in_a_file_is_not_read_as_anything_but_null(
    tmp_path: Path, written: str, root: str | None
) -> None:
    assert Params.load(write(tmp_path, f"data:\n  root: {written}\n")).data.root == root
    assert Params.load(write(tmp_path, "{}"), [f"data={{root: {written}}}"]).data.root == root


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.pretrained=true", True),
        ("model.pretrained=False", False),
        ("tracking.registered_model=false", False),
        ("tracking.registered_model=true", "true"),  # no other value of its own
        ("tracking.registered_model=null", None),  # a text of a fixed form
        ("model.trainable=null", None),
        ("kubernetes.s3_secret=0123", "0123"),
        (
            "kubernetes.node_selector={disk: no, generation: 0123}",
            {"disk": "no", "generation": "0123"},
        ),
        ("kubernetes.node_selector.disk=no", {"disk": "no"}),
        ("kubernetes.image_pull_secrets=[1, no]", ("1", "no")),
        ("clustering.num_clusters=auto", "auto"),
        ("clustering.num_clusters=12", 12),
        ("clustering.k_range=[2, 5]", (2, 5)),
        ("model.pooling=null", None),
    ],
)
def test_what_else_a_parameter_may_be_keeps_its_meaning(
    tmp_path: Path, override: str, value: Any
) -> None:
    section, key = override.partition("=")[0].split(".")[:2]
    assert getattr(getattr(Params.load(write(tmp_path, ""), [override]), section), key) == value


def test_text_for_dvc_is_quoted_as_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    assert """-S "++data.root='batch #2'" """ in page
    assert "`'` is written `\\'`" in page
    for name in TEXTS:
        params = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
        apply_overrides(params, ["++data.root='" + name.replace("'", "\\'") + "'"])
        assert Params.load(params).data.root == name


def test_the_last_override_wins_and_the_seed_has_no_section(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1")
    assert Params.load(path, ["seed=2", "seed=3"]).seed == 3


@pytest.mark.parametrize("override", ["joint.gamma", "=3", "joint.gamma=["])
def test_malformed_overrides_are_quoted(tmp_path: Path, override: str) -> None:
    with pytest.raises(InputError, match="-S ") as caught:
        Params.load(write(tmp_path, ""), [override])
    assert override in str(caught.value)


@pytest.mark.parametrize(
    "override", ["joint.gama=1", "joint=3", "joint.gamma.x=3", "seed.x=1", "joint..gamma=1"]
)
def test_wrong_overrides_are_said_to_come_from_the_command_line(
    tmp_path: Path, override: str
) -> None:
    with pytest.raises(InputError, match=r"params\.yaml with -S "):
        Params.load(write(tmp_path, ""), [override])


def test_pretrained_is_a_switch_or_a_path() -> None:
    for value in (True, False, "weights.safetensors"):
        assert ModelConfig.parse({"pretrained": value}, where="test").pretrained == value


def test_sections_cannot_be_changed_behind_a_step() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Params().joint.gamma = 3.0  # type: ignore[misc]


@given(
    st.builds(
        JointConfig,
        epochs=st.integers(0, 10**6),
        batch_size=st.integers(1, 10**6),
        learning_rate=st.floats(1e-12, 1e3),
        gamma=st.floats(0, 1e9),
        shift=st.floats(0, 1, exclude_max=True),
        flip=st.booleans(),
    )
)
def test_a_section_survives_yaml_and_doubles(joint: JointConfig) -> None:
    through_yaml = yaml.safe_load(yaml.safe_dump(joint.model_dump()))
    as_doubles = {
        key: float(value) if type(value) is int else value for key, value in through_yaml.items()
    }
    assert JointConfig.parse(through_yaml, where="yaml") == joint
    assert JointConfig.parse(as_doubles, where="kubeflow") == joint


@given(st.text(), st.sampled_from(["data", "data.root", "clustering.k_range", "kubernetes"]))
def test_any_override_is_either_accepted_or_refused_with_a_message(text: str, name: str) -> None:
    message = "-S "
    try:
        Params.load(ROOT / "params.yaml", [f"{name}={text}"])
    except InputError as error:
        message = str(error)
    assert "-S " in message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=8,
    ),
    st.sampled_from([*Params.section_names(), "seed", "other"]),
)
def test_any_value_is_either_accepted_or_refused_with_a_message(value: Any, key: str) -> None:
    message = "params.yaml: "
    try:
        parse(**{key: value})
    except InputError as error:
        message = str(error)
    assert message.startswith("params.yaml: ")


def test_a_wrong_union_is_named_by_the_parameter_alone() -> None:
    with pytest.raises(InputError, match=r"^test: pretrained: input .*; pretrained: input [^.]*$"):
        ModelConfig.parse({"pretrained": 3}, where="test")


@pytest.mark.parametrize("file", [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))])
def test_every_parameter_file_of_the_repository_is_valid(file: Path) -> None:
    assert Params.load(file).model_dump()
