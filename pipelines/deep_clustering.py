"""The pipeline: train, cluster, then rounds of retraining until the joint loss stops falling.

KFP has no loop whose end is found out while it runs. So a round is nested in the round before: if
the check says `continue`, the next round follows, else the evaluation, as far as the pipeline has
room, a number of compile time. Where the room ends before the rounds do, the evaluation shows what
there is, and a pipeline with room for later rounds continues from it. Kubeflow Pipelines 2.17 is
the first release that gets nested conditions right, on the cluster and in its local runner.
"""

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

from kfp import dsl

import components
from pipelines.tasks import Configure
from vitdc.artifacts import CONTINUE
from vitdc.config import Params
from vitdc.kubeflow import SETTINGS

NAME = "deep-clustering"
START_RECORD, CONTINUE_RECORD = "start the record", "continue the record"
OUT_OF_ROOM = "evaluate (round {}, out of room)"
"""Name of the task that evaluates a run whose room ended before its rounds."""


IMPORTED = {
    "dataset": dsl.Dataset,
    "initial": dsl.Artifact,
    "last": dsl.Artifact,
    "round": dsl.Artifact,
}
"""What a pipeline that continues another run takes from it."""
CONTINUED_RUN_ID = "continued_run_id"
"""The parameter of a pipeline that continues another run: Kubeflow's id of that."""


class Room(NamedTuple):
    """The rounds that a pipeline has room for; it continues another run if `first` is not 1."""

    last: int
    first: int = 1

    @property
    def continues(self) -> bool:
        return self.first > 1


def build_pipeline(defaults: Params, *, room: Room, code: str, configure: Configure) -> Any:
    """Declare the pipeline.

    Args:
        defaults: The defaults of the pipeline's parameters.
        room: The rounds that it has room for.
        code: Hash of the code that the tasks run, so that caches notice when it changes.
        configure: Gives a task its name and what it needs from the cluster.

    Returns:
        KFP's pipeline, ready to be compiled or called. If it continues another run, it has the
        parameter CONTINUED_RUN_ID, too.
    """
    arguments = pipeline_parameters(defaults) | ({CONTINUED_RUN_ID: ""} if room.continues else {})

    def deep_clustering(*values: Any) -> None:
        given = dict(zip(arguments, values, strict=True))
        continued = given.pop(CONTINUED_RUN_ID, None)
        run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        ending = components.end_record(pipeline_run_id=run_id, **given)
        configure.task(ending, "record the end")
        with dsl.ExitHandler(ending, name=NAME):
            begin = _Beginning(given, run_id, code, configure)
            begin.continued(room, continued) if room.continues else begin.fresh(room)

    deep_clustering.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=value,
                annotation=type(value),
            )
            for name, value in arguments.items()
        ]
    )
    declare = dsl.pipeline(
        name=NAME,
        description="Deep clustering of images with a Vision Transformer (Shin, Yu, Lee).",
        pipeline_config=configure.pipeline_config(),
    )
    return declare(deep_clustering)


def pipeline_parameters(params: Params) -> dict[str, Any]:
    """The sections of `params.yaml` as arguments of the pipeline, with all their defaults.

    Spelled out in full, so that KFP's UI offers every knob. Only null is left out: KFP cannot write
    it into a default, and it is the default of every knob that may be null. `kubernetes` is
    compiled in.
    """
    return params.model_dump(mode="json", exclude={"kubernetes"}, exclude_none=True)


@dataclass(frozen=True)
class _Beginning:
    """Adds what comes before the rounds, and the rounds."""

    parameters: dict[str, Any]
    run_id: str
    code: str
    configure: Configure

    def fresh(self, room: Room) -> None:
        """Prepare the data, make the record, train and cluster for the first time."""
        task = self.configure.task
        found = task(components.find_version(data=self.parameters["data"]), "find the data").outputs
        prepared = task(
            components.prepare(data=found["data"], version=found["version"], code=self.code),
            "prepare",
        ).outputs
        started = components.start_record(
            **{key: prepared[key] for key in ("name", "content_hash", "origin")},
            pipeline_run_id=self.run_id,
            code=self.code,
            **{**self.parameters, "data": found["data"]},
        )
        rounds = self._rounds(prepared["dataset"], task(started, START_RECORD).outputs, room)
        initial = rounds.add_initial()
        rounds.add(1, initial=initial, before=initial, history=None)

    def continued(self, room: Room, run_id: Any) -> None:
        """Take the data and the last round from where the continued run left them."""
        record = components.continue_record(
            continued_run_id=run_id,
            pipeline_run_id=self.run_id,
            code=self.code,
            **self.parameters,
        )
        found = self.configure.task(record, CONTINUE_RECORD).outputs
        # A group that is always entered: KFP's importer knows the inputs of its group, but no
        # outputs of other tasks; and under a name of ours, tasks would not find what it imports.
        with dsl.If(run_id != "", name=f"round-{room.first}"):
            dataset, initial, last, history = (
                dsl.importer(artifact_uri=found[f"{name}_uri"], artifact_class=kind).output
                for name, kind in IMPORTED.items()
            )
            rounds = self._rounds(dataset, found, room)
            rounds.add(room.first, initial=initial, before=last, history=history)

    def _rounds(self, dataset: Any, found: Any, room: Room) -> "_Rounds":
        settings = {task: found[task] for task in SETTINGS}
        return _Rounds(dataset, settings, self.configure, room.last)


@dataclass(frozen=True)
class _Rounds:
    """Adds round after round."""

    dataset: Any
    settings: dict[str, Any]
    configure: Configure
    last: int

    def add_initial(self) -> Any:
        """The initial training and clustering.

        Its settings come from the task that makes the record, and so it waits for that: where
        nothing can be recorded, nothing should be trained for hours.
        """
        checkpoint = self._task(components.pretrain, 0).outputs["checkpoint"]
        return self._embed_and_cluster(0, checkpoint)["state"]

    def add(self, number: int, *, initial: Any, before: Any, history: Any) -> None:
        """Round `number`, and the rounds or the evaluation after it."""
        is_first = before is initial  # ML Metadata takes an artifact once per task
        features = None if is_first else initial
        retrained = self._task(components.retrain, number, before=before, initial=features)
        checkpoint = retrained.outputs["checkpoint"]
        made = self._embed_and_cluster(number, checkpoint, initial=initial, before=before)
        checked = self._task(
            components.check,
            number,
            embeddings=made["embeddings"],
            before=before,
            previous=history,
        ).outputs
        found = {"initial": initial, "last": made["state"], "round": checked["round"]}
        found["verdict"] = checked["Output"]
        if not is_first:
            found["previous"] = before
        with dsl.If(checked["Output"] != CONTINUE, name=f"stop-after-round-{number}"):
            self._evaluate(f"evaluate (round {number})", **found)
        if number == self.last:
            with dsl.If(checked["Output"] == CONTINUE, name=f"out-of-room-after-round-{number}"):
                self._evaluate(OUT_OF_ROOM.format(number), **found)
        else:
            with dsl.If(checked["Output"] == CONTINUE, name=f"round-{number + 1}"):
                self.add(
                    number + 1, initial=initial, before=made["state"], history=checked["round"]
                )

    def _embed_and_cluster(
        self, number: int, checkpoint: Any, *, initial: Any = None, before: Any = None
    ) -> dict[str, Any]:
        made = {"checkpoint": checkpoint}
        made |= self._task(components.embed, number, **made, initial=initial).outputs
        made |= self._task(components.cluster, number, **made, before=before).outputs
        return made

    def _evaluate(self, name: str, **rounds: Any) -> None:
        settings = self.settings["evaluate"]
        task = components.evaluate(dataset=self.dataset, settings=settings, **rounds)
        self.configure.task(task, name)

    def _task(self, component: Any, number: int, **inputs: Any) -> Any:
        """A task of a round, with the settings that `start_record` gave to its component.

        An input that is None is left out.
        """
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if "dataset" in component.component_spec.inputs:
            inputs["dataset"] = self.dataset
        task = component(settings=self.settings[component.name], **inputs)
        return self.configure.task(task, f"{component.name} (round {number})")
