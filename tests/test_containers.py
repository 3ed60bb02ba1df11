"""What a container is started with; whether it does what it should is the matter of containers/."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.containers import run_container
from vitdc.tracking import RECORD_VARIABLE


class Engine:
    """Stands for a container engine: notes what is started, and lets it end well at once."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.containers = SimpleNamespace(create=self._create)
        self.images = SimpleNamespace(get=str)

    def _create(self, **arguments: Any) -> Any:
        self.started.append(arguments)
        return SimpleNamespace(
            start=lambda: None, logs=_no_log, wait=lambda: {"StatusCode": 0}, remove=_no_log
        )


def _no_log(**_: Any) -> Iterator[bytes]:
    return iter(())


def test_a_container_is_told_which_run_it_fills_once_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine()
    shared = {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    for record in ("", "run/job"):
        monkeypatch.setenv(RECORD_VARIABLE, record)
        assert run_container(engine, "image", ["work"], {}, environment=shared) == 0
    before, after = (each["environment"] for each in engine.started)
    assert before == shared
    assert after == {**shared, RECORD_VARIABLE: "run/job"}
