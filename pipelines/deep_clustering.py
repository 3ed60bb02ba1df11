"""The pipeline: train, cluster, then rounds of retraining until the joint loss stops falling.

KFP has no loop whose end is found out while it runs. So a round is nested in the round before: if
the check says `continue`, the next round follows, else the evaluation, up to `max_rounds` rounds,
a number of compile time. Kubeflow Pipelines 2.17 is the first release that gets nested conditions
right, on the cluster and in its local runner.
"""

from dataclasses import dataclass
from typing import Any

from kfp import dsl

import components
from pipelines.tasks import Configure
from vitdc.artifacts import CONTINUE
from vitdc.config import Params

NAME = "deep-clustering"
START_RECORD = "start the record"


def build_pipeline(defaults: Params, *, max_rounds: int, code: str, configure: Configure) -> Any:
    """Declare the pipeline.

    Args:
        defaults: The defaults of the pipeline's parameters.
        max_rounds: Rounds that it has room for; `convergence.max_rounds` may be less.
        code: Hash of the code that the tasks run, so that caches notice when it changes.
        configure: Gives a task its name and what it needs from the cluster.

    Returns:
        KFP's pipeline, ready to be compiled or called.
    """
    sections = pipeline_parameters(defaults)

    @dsl.pipeline(
        name=NAME,
        description="Deep clustering of images with a Vision Transformer (Shin, Yu, Lee).",
        pipeline_config=configure.pipeline_config(),
    )
    def deep_clustering(
        seed: int = defaults.seed,
        data: dict = sections["data"],
        model: dict = sections["model"],
        pretraining: dict = sections["pretraining"],
        clustering: dict = sections["clustering"],
        joint: dict = sections["joint"],
        convergence: dict = sections["convergence"],
        evaluation: dict = sections["evaluation"],
        compute: dict = sections["compute"],
        tracking: dict = sections["tracking"],
    ) -> None:
        parameters = {
            "seed": seed,
            "model": model,
            "pretraining": pretraining,
            "clustering": clustering,
            "joint": joint,
            "convergence": convergence,
            "evaluation": evaluation,
            "compute": compute,
            "tracking": tracking,
        }
        run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        ending = components.end_record(pipeline_run_id=run_id, data=data, **parameters)
        configure.task(ending, "record the end")
        with dsl.ExitHandler(ending, name="deep-clustering"):
            found = configure.task(components.find_version(data=data), "find the data").outputs
            prepared = configure.task(
                components.prepare(data=found["data"], version=found["version"], code=code),
                "prepare",
            ).outputs
            started = configure.task(
                components.start_record(
                    dataset_name=prepared["name"],
                    content_hash=prepared["content_hash"],
                    origin=prepared["origin"],
                    pipeline_run_id=run_id,
                    data=found["data"],
                    **parameters,
                ),
                START_RECORD,
            )
            rounds = _Rounds(
                parameters, prepared["dataset"], started.output, code, configure, max_rounds
            )
            rounds.add_first(after=started)

    return deep_clustering


def pipeline_parameters(params: Params) -> dict[str, Any]:
    """The sections of `params.yaml` as arguments of the pipeline, with all their defaults.

    Spelled out in full, so that KFP's cache sees equal parameters as equal, however they were
    given, and its UI offers every knob. Only null is left out: KFP cannot write it into a default,
    and it is the default of every knob that may be null. `kubernetes` is compiled in.
    """
    return params.model_dump(mode="json", exclude={"kubernetes"}, exclude_none=True)


@dataclass(frozen=True)
class _Rounds:
    """Adds round after round; a task gets the parameters that its component asks for."""

    parameters: dict[str, Any]
    dataset: Any
    record: Any
    code: str
    configure: Configure
    max_rounds: int

    def add_first(self, *, after: Any) -> None:
        """The initial training and clustering, and everything after it.

        Args:
            after: The task that has to be done before: where nothing can be recorded, nothing
                should be trained for hours.
        """
        trained = self._task(components.pretrain, 0, dataset=self.dataset).after(after)
        checkpoint = trained.outputs["checkpoint"]
        embeddings = self._embed(0, checkpoint)
        initial = self._cluster(0, checkpoint, embeddings)
        self._add(1, initial=initial, before=initial, history=None)

    def _add(self, number: int, *, initial: Any, before: Any, history: Any) -> None:
        """Round `number`, and the rounds or the evaluation after it."""
        checkpoint = self._task(
            components.retrain, number, dataset=self.dataset, before=before
        ).outputs["checkpoint"]
        embeddings = self._embed(number, checkpoint)
        previous = {"previous": history} if history else {}
        checked = self._task(
            components.check,
            number,
            embeddings=embeddings,
            before=before,
            max_rounds=self.max_rounds,
            **previous,
        ).outputs
        state = self._cluster(number, checkpoint, embeddings, before=before)

        def evaluate() -> None:
            self._task(
                components.evaluate,
                number,
                dataset=self.dataset,
                initial=initial,
                previous=before,
                last=state,
                round=checked["round"],
            )

        if number == self.max_rounds:  # the check does not let a last round go on
            evaluate()
            return
        with dsl.If(checked["Output"] == CONTINUE, name=f"round-{number + 1}"):
            self._add(number + 1, initial=initial, before=state, history=checked["round"])
        with dsl.Else(name=f"stop-after-round-{number}"):
            evaluate()

    def _embed(self, number: int, checkpoint: Any) -> Any:
        task = self._task(components.embed, number, dataset=self.dataset, checkpoint=checkpoint)
        return task.outputs["embeddings"]

    def _cluster(self, number: int, checkpoint: Any, embeddings: Any, **before: Any) -> Any:
        inputs = {"dataset": self.dataset, "checkpoint": checkpoint, "embeddings": embeddings}
        return self._task(components.cluster, number, **inputs, **before).outputs["state"]

    def _task(self, component: Any, number: int, **inputs: Any) -> Any:
        """A task of a round, with the sections and the seed that its component takes."""
        known = {**self.parameters, "record": self.record, "code": self.code}
        wanted = {key: known[key] for key in component.component_spec.inputs if key in known}
        name = f"{component.name} (round {number})"
        return self.configure.task(component(**wanted, **inputs), name)
