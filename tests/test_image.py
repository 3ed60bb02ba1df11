"""What has to hold of the image's recipe; tests/containers builds it and runs it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# an instruction per item, continued lines joined
INSTRUCTIONS = re.findall(r"^[A-Z]+ .*$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


def locked(name: str) -> dict[str, set[str]]:
    """Of a lock file: `package==version` -> its hashes."""
    entries = re.split(r"^(?=[a-z0-9])", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]
    return {
        re.split(r"[ ;\\]", entry, maxsplit=1)[0]: set(re.findall(r"--hash=(\S+)", entry))
        for entry in entries
    }


def normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()


def test_the_image_has_the_releases_that_the_tests_ran_with() -> None:
    ours, tested = locked("requirements-image.lock"), locked("requirements.lock")
    assert ours.keys() <= tested.keys(), "make lock writes both"
    for package, hashes in ours.items():
        assert hashes, package
        assert hashes == tested[package]


def test_the_image_has_what_the_package_needs_and_no_tools_of_developers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {package.partition("==")[0] for package in locked("requirements-image.lock")}
    assert names >= {normal(each) for each in project["project"]["dependencies"]}
    developers = {normal(each) for each in project["dependency-groups"]["dev"]}
    assert names & developers <= {"requests"}  # which MLflow needs, too


def test_locks_name_no_package_index() -> None:
    for name in ("requirements.lock", "requirements-image.lock"):
        assert not re.search(r"://|--(extra-)?index|--find-links", (ROOT / name).read_text()), name


def test_every_stage_is_made_from_the_base_that_was_asked_for() -> None:
    stages = [each for each in INSTRUCTIONS if each.startswith("FROM ")]
    own = {each.split(" AS ")[1] for each in stages if " AS " in each}
    assert {each.split()[1] for each in stages} <= {"${BASE_IMAGE}", *own}


def test_packages_are_installed_by_hash() -> None:
    installs = re.findall(r"pip (?:install|sync)[^&]*", "\n".join(INSTRUCTIONS))
    assert len(installs) == 3
    for install in installs:  # our own wheel comes from this checkout
        assert "--require-hashes" in install or install.strip().endswith("--no-deps /wheel/*.whl")


def test_the_image_runs_any_command_as_a_numeric_user() -> None:
    assert not [each for each in INSTRUCTIONS if each.startswith("ENTRYPOINT")]
    user = [each for each in INSTRUCTIONS if each.startswith("USER ")][-1]
    assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", user)  # Kubernetes can tell that it is not root


def test_the_build_sees_nothing_but_the_code_and_its_locks() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    packages = {"vitdc", "components", "pipelines"}
    files = {"pyproject.toml", "README.md", "requirements.lock", "requirements-image.lock"}
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == packages | files
