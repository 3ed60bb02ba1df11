"""The compiled pipeline: its size, its shape, and what every task asks of the cluster."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import compiling, size
from pipelines.deep_clustering import Room, pipeline_parameters
from pipelines.sharing import share_components, shorten_names, unwrap_conditional_tasks
from vitdc import code, kubeflow
from vitdc.config import Params
from vitdc.errors import InputError

ROOT = Path(__file__).parent.parent
STEPS_OF_A_ROUND = ("retrain", "embed", "check", "cluster")

# Everything on: what a production cluster needs, and the largest specification.
EVERYTHING = [
    "kubernetes.image=registry.example/team/vitdc@sha256:" + "0123456789abcdef" * 4,
    "kubernetes.image_pull_secrets=[registry]",
    "kubernetes.data_claim=images",
    "kubernetes.node_selector={pool: batch}",
    "kubernetes.gpu_selector={gpu: a100}",
    *(f"kubernetes.resources.{name}.gpus=1" for name in ("pretrain", "embed", "retrain")),
]


def params(*overrides: str) -> Params:
    return Params.load(ROOT / "params.yaml", overrides)


@functools.cache
def compiled(*overrides: str, max_rounds: int = 3, room: Room | None = None) -> tuple[dict, dict]:
    """The pipeline's specification and that of Kubernetes, as a cluster reads them."""
    chosen = params(f"convergence.max_rounds={max_rounds}", *overrides)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "pipeline.yaml"
        compiling.write(compiling.build(chosen, room=room), file)
        pipeline, platform = yaml.safe_load_all(file.read_text())
    return pipeline, platform["platforms"]["kubernetes"]


def tasks(pipeline: dict, component: str | None = None) -> Iterator[tuple[str, dict, list[str]]]:
    """Every task that is not a DAG: name, specification, the DAG tasks around it."""
    found = pipeline["root"] if component is None else pipeline["components"][component]
    for key, task in found["dag"]["tasks"].items():
        reference = task["componentRef"]["name"]
        if "dag" in pipeline["components"][reference]:
            for name, inner, path in tasks(pipeline, reference):
                yield name, inner, [task["taskInfo"]["name"], *path]
        else:
            yield task["taskInfo"]["name"], {"key": key, **task}, []


def executors(pipeline: dict, platform: dict) -> Iterator[tuple[str, dict, dict]]:
    """Per task: its component, its container, what it asks of Kubernetes."""
    for _, task, _ in tasks(pipeline):
        component = task["componentRef"]["name"]
        label = pipeline["components"][component]["executorLabel"]
        container = pipeline["deploymentSpec"]["executors"][label]["container"]
        settings = platform["deploymentSpec"]["executors"][label]
        yield component.removeprefix("comp-"), container, settings


# --- size --------------------------------------------------------------------------------------


def test_a_round_costs_little(tmp_path: Path) -> None:
    """At most 8 KB of compiled YAML per round, with all settings on."""
    sizes = []
    for max_rounds in (10, 12):
        pipeline = compiling.build(params(*EVERYTHING, f"convergence.max_rounds={max_rounds}"))
        sizes.append(compiling.write(pipeline, tmp_path / "pipeline.yaml"))
        assert sizes[-1] == (tmp_path / "pipeline.yaml").stat().st_size
    assert sizes[1] - sizes[0] <= 2 * 8_000


def test_25_rounds_fit_into_a_cluster() -> None:
    pipeline = compiling.build(params(*EVERYTHING, "convergence.max_rounds=25"))
    assert size.workflow_size(pipeline, 25) <= size.MAX_WORKFLOW == 2**20


def test_too_many_rounds_are_refused_with_the_largest_number_that_fits() -> None:
    with pytest.raises(InputError, match=r"--max-rounds 30: .* needs up to 1,\d{3},\d{3}") as error:
        compiling.build(params("convergence.max_rounds=30"))
    most = int(re.search(r"room for (\d+)", str(error.value))[1])
    compiling.build(params(), room=Room(most))
    with pytest.raises(InputError, match=rf"there is room for {most}, "):
        compiling.build(params(), room=Room(most + 1))


@pytest.mark.parametrize("max_rounds", [0, -1])
def test_at_least_one_round_is_needed(max_rounds: int) -> None:
    with pytest.raises(InputError, match="at least 1 round"):
        compiling.find_room(params(), max_rounds)


# --- shape -------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [Room(1), Room(2), Room(4), Room(first=5, last=7)])
def test_every_round_lies_in_the_round_before_and_may_end_in_the_evaluation(room: Room) -> None:
    pipeline, _ = compiled(room=room)
    depth = {name: path[1:] for name, _, path in tasks(pipeline)}
    for number in range(room.first, room.last + 1):
        around = [f"round-{n}" for n in range(room.first + (room.first == 1), number + 1)]
        for step in (*STEPS_OF_A_ROUND, "evaluate"):
            assert depth[f"{step} (round {number})"] == around
    assert depth[f"evaluate (round {room.last}, out of room)"] == around
    beginning = 4 + 3 if room.first == 1 else 2 + 4
    assert len(depth) == beginning + 5 * (room.last - room.first + 1) + 1


def conditions(pipeline: dict) -> dict[str, str]:
    """Every task or group with a condition, by the name that people see."""
    return {
        task["taskInfo"]["name"]: task["triggerPolicy"]["condition"]
        for component in pipeline["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "condition" in task.get("triggerPolicy", {})
    }


def test_after_a_round_follows_the_next_one_or_the_evaluation() -> None:
    pipeline, _ = compiled(max_rounds=2)
    found = {name: text.rpartition("] ")[2] for name, text in conditions(pipeline).items()}
    assert found == {
        "evaluate (round 1)": "!= 'continue'",
        "round-2": "== 'continue'",
        "evaluate (round 2)": "!= 'continue'",
        "evaluate (round 2, out of room)": "== 'continue'",
    }


@pytest.mark.parametrize("room", [Room(1), Room(4), Room(first=5, last=7)])
def test_every_input_of_a_task_and_of_a_group_is_defined_and_comes_from_somewhere(
    room: Room,
) -> None:
    pipeline, _ = compiled(room=room)

    def check(component: dict, given: set[str]) -> None:
        defined = {
            name
            for kind in component.get("inputDefinitions", {}).values()
            for name, definition in kind.items()
            if not definition.get("isOptional") and "defaultValue" not in definition
        }
        assert defined <= given
        for task in component.get("dag", {}).get("tasks", {}).values():
            inputs = task.get("inputs", {})
            values = {**inputs.get("parameters", {}), **inputs.get("artifacts", {})}
            for value in values.values():
                outer = value.get("componentInputParameter") or value.get("componentInputArtifact")
                assert outer is None or outer in given
                producer = next(iter(value.values()))
                if isinstance(producer, dict) and "producerTask" in producer:
                    assert producer["producerTask"] in task["dependentTasks"]
            condition = task.get("triggerPolicy", {}).get("condition", "")
            operands = re.findall(r"parameter_values\['(.+?)'\]", condition)
            assert set(operands) <= set(values)
            check(pipeline["components"][task["componentRef"]["name"]], set(values))

    check(pipeline["root"], set(pipeline["root"]["inputDefinitions"]["parameters"]))


@pytest.mark.parametrize("room", [*map(Room, range(1, 6)), Room(first=3, last=5)])
def test_no_task_is_given_one_artifact_twice(room: Room) -> None:
    """ML Metadata takes an artifact once per task; KFP's driver fails at the second."""
    pipeline, _ = compiled(room=room)

    def check(component: dict, around: dict[str, str], path: str) -> int:
        """Follow every artifact to the task that made it; the number of tasks with inputs."""
        count = 0
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            found = {}
            for name, value in task.get("inputs", {}).get("artifacts", {}).items():
                if "componentInputArtifact" in value:
                    found[name] = around[value["componentInputArtifact"]]
                else:
                    made = value["taskOutputArtifact"]
                    found[name] = f"{path}/{made['producerTask']}/{made['outputArtifactKey']}"
            inner = pipeline["components"][task["componentRef"]["name"]]
            if "dag" in inner:
                count += check(inner, found, f"{path}/{key}")
            else:
                assert len(set(found.values())) == len(found), (path, key, found)
                count += bool(found)
        return count

    rounds = room.last - room.first + 1
    assert check(pipeline["root"], {}, "") == 5 * rounds + 1 + (3 if room.first == 1 else 0)


def test_a_later_run_imports_the_round_that_it_continues() -> None:
    pipeline, _ = compiled(room=Room(first=3, last=4))
    found = {name: task for name, task, _ in tasks(pipeline)}
    retrain = found["retrain (round 3)"]["inputs"]["artifacts"]["before"]["taskOutputArtifact"]
    importer = found[retrain["producerTask"]]
    assert importer["key"] == importer["taskInfo"]["name"]  # KFP finds it by this name
    # KFP's importer cannot look at the outputs of other tasks
    uri = importer["inputs"]["parameters"]["uri"]
    assert uri == {"componentInputParameter": "last_uri"}
    assert "continued_run_id" in pipeline["root"]["inputDefinitions"]["parameters"]


@pytest.mark.parametrize("room", [None, Room(first=3, last=4)])
def test_later_rounds_take_the_features_that_round_0_has(room: Room | None) -> None:
    """A frozen backbone sees every image once; ML Metadata takes an artifact once per task."""
    pipeline, _ = compiled(room=room)
    found = {
        name: set(task.get("inputs", {}).get("artifacts", {})) for name, task, _ in tasks(pipeline)
    }
    for number in (1, 2, 3) if room is None else (3, 4):
        retrain = {"dataset", "before"} | ({"initial"} if number > 1 else set())
        assert found[f"retrain (round {number})"] == retrain
        assert found[f"embed (round {number})"] == {"dataset", "checkpoint", "initial"}
    if room is None:
        assert found["embed (round 0)"] == {"dataset", "checkpoint"}


def test_an_exit_handler_runs_after_everything() -> None:
    pipeline, _ = compiled()
    ending = pipeline["root"]["dag"]["tasks"]["end-record"]
    assert ending["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert "taskFinalStatus" in ending["inputs"]["parameters"]["status"]
    assert len(pipeline["root"]["dag"]["tasks"]) == 2


def test_the_parameters_are_the_sections_with_the_values_of_the_file() -> None:
    pipeline, _ = compiled("joint.gamma=0.25")
    found = pipeline["root"]["inputDefinitions"]["parameters"]
    assert set(found) == {"seed", *Params.section_names()} - {"kubernetes"}
    assert found["joint"]["defaultValue"]["gamma"] == 0.25
    assert found["joint"]["defaultValue"]["mixup"] == 0.0  # also what the file does not name


def test_a_knob_that_may_be_null_is_null_by_default() -> None:
    """KFP cannot write null into a default, so the parameters leave it out."""
    for name in pipeline_parameters(Params()):
        section = getattr(Params(), name)
        if name != "seed":
            optional = [k for k, f in type(section).model_fields.items() if "None" in str(f)]
            for key in optional:
                if type(None) in getattr(
                    type(section).model_fields[key].annotation, "__args__", ()
                ):
                    assert getattr(section, key) is None, f"{name}.{key}"
    overridden = params("data.root=null", "model.image_size=null")
    assert Params.parse(pipeline_parameters(overridden), where="") == overridden.model_copy(
        update={"kubernetes": Params().kubernetes}
    )


# --- sharing -----------------------------------------------------------------------------------


def test_shared_components_leave_every_task_as_it_was() -> None:
    def facts(pipeline: Any) -> dict[str, tuple[Any, ...]]:
        spec, settings = pipeline.pipeline_spec, pipeline.platform_spec.platforms["kubernetes"]
        found = {}
        for dag in (spec.root, *spec.components.values()):
            for task in dag.dag.tasks.values():
                component = spec.components[task.component_ref.name]
                label = component.executor_label
                if label:
                    found[task.task_info.name] = (
                        component.input_definitions,
                        component.output_definitions,
                        task.inputs,
                        dict(spec.deployment_spec["executors"][label]),
                        settings.deployment_spec.executors[label],
                    )
        return found

    shared = compiling.build(params(*EVERYTHING, "convergence.max_rounds=3"))
    configure = compiling.Configure(params(*EVERYTHING).kubernetes)
    plain = compiling.build_pipeline(
        params(*EVERYTHING, "convergence.max_rounds=3"),
        room=Room(3),
        code=compiling.code_version(),
        configure=configure,
    )
    unwrap_conditional_tasks(plain.pipeline_spec)
    shorten_names(plain.pipeline_spec)
    assert facts(shared) == facts(plain)
    assert len(facts(shared)) == 4 + 3 + 5 * 3 + 1
    containers = [c for c in shared.pipeline_spec.components.values() if c.executor_label]
    assert len(containers) == len({c.executor_label for c in containers}) == 10


def test_components_with_other_settings_are_not_shared() -> None:
    pipeline = compiling.build(params("convergence.max_rounds=2"), local=True)
    executors = pipeline.platform_spec.platforms["kubernetes"].deployment_spec.executors
    spec = pipeline.pipeline_spec
    executors[spec.components["comp-embed-2"].executor_label]["imagePullPolicy"] = "Always"
    share_components(spec, pipeline.platform_spec)
    assert {"comp-embed", "comp-embed-2"} <= set(spec.components)
    assert "comp-embed-3" not in spec.components


# --- what tasks ask of the cluster -------------------------------------------------------------


def test_no_task_runs_as_root_and_all_have_requests_and_limits() -> None:
    for name, container, settings in executors(*compiled()):
        assert settings["securityContext"] == {
            "runAsUser": "10001",
            "runAsGroup": "10001",
            "runAsNonRoot": True,
        }, name
        resources = container["resources"]
        for kind in ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit"):
            assert resources[f"resource{kind}"], name
        labels = {"app.kubernetes.io/part-of": "vitdc"}
        if name == "end-record":  # so that Argo lets it tell how a terminated run ended
            labels["workflows.argoproj.io/on-exit"] = "true"
        assert settings["podMetadata"]["labels"] == labels
        assert {"mountPath": "/tmp", "volumeName": "tmp", "sizeLimit": "4Gi"} in settings[  # noqa: S108
            "emptyDirMounts"
        ]
        assert "latest" not in container["image"]


def test_credentials_go_only_to_the_tasks_that_use_them() -> None:
    secrets: dict[str, set[str]] = {}
    for name, _, settings in executors(*compiled()):
        names = {secret["secretName"] for secret in settings.get("secretAsEnv", [])}
        names |= {entry["configMapName"] for entry in settings.get("configMapAsEnv", [])}
        secrets[name] = names
    images, records = {"vitdc-endpoints", "vitdc-s3"}, {"vitdc-endpoints", "vitdc-mlflow"}
    assert secrets == {
        "find-version": images,
        "prepare": images,
        "start-record": records,
        "check": records,
        "evaluate": images | records,  # MLflow's artifacts may lie in S3
        "end-record": records,
        "pretrain": records,
        "embed": set(),
        "cluster": set(),
        "retrain": records,
    }


def test_no_task_is_given_a_variable_that_kfps_mlflow_plugin_sets() -> None:
    for name, container, settings in executors(*compiled()):
        variables = {each["name"] for each in container.get("env", [])}
        for source in settings.get("secretAsEnv", []) + settings.get("configMapAsEnv", []):
            variables |= {each["envVar"] for each in source["keyToEnv"]}
        assert not {each for each in variables if each.startswith("MLFLOW_")}, name


def test_tasks_with_side_effects_always_run_and_the_others_are_cached() -> None:
    pipeline, _ = compiled()
    cached = {
        re.sub(r" \(.*", "", name): task["cachingOptions"].get("enableCache", False)
        for name, task, _ in tasks(pipeline)
    }
    assert {name for name, enabled in cached.items() if enabled} == {
        "prepare",
        "pretrain",
        "embed",
        "cluster",
        "retrain",
    }
    pipeline, _ = compiled("kubernetes.caching=false")
    assert not any(task["cachingOptions"].get("enableCache") for _, task, _ in tasks(pipeline))


def test_every_cached_task_has_the_code_version() -> None:
    pipeline, _ = compiled()
    settings = kubeflow.task_settings(pipeline_parameters(params()), code="123", record="")
    for name, task, _ in tasks(pipeline):
        if task["cachingOptions"].get("enableCache"):
            component = re.sub(r" \(.*", "", name)
            if component == "prepare":
                code = task["inputs"]["parameters"]["code"]["runtimeValue"]["constant"]
                assert code == compiling.code_version()
            else:
                assert settings[component]["code"] == "123"


def test_a_task_has_its_settings_from_the_task_that_makes_the_record() -> None:
    pipeline, _ = compiled(max_rounds=1)
    for name, task, _ in tasks(pipeline):
        component = re.sub(r" \(.*", "", name)
        if component in kubeflow.SETTINGS:
            source = task["inputs"]["parameters"]["settings"]["taskOutputParameter"]
            assert source == {"producerTask": "start-record", "outputParameterKey": component}


def test_gpu_tasks_get_their_nodes() -> None:
    found = {name: both for name, *both in executors(*compiled(*EVERYTHING))}
    container, settings = found["retrain"]
    assert container["resources"]["accelerator"] == {
        "count": "1",
        "resourceCount": "1",
        "resourceType": "nvidia.com/gpu",
        "type": "nvidia.com/gpu",
    }
    assert settings["nodeSelector"]["labels"] == {"pool": "batch", "gpu": "a100"}
    assert settings["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert {m["volumeName"] for m in settings["emptyDirMounts"]} == {"tmp", "shm"}
    container, settings = found["check"]
    assert "accelerator" not in container["resources"]
    assert settings["nodeSelector"]["labels"] == {"pool": "batch"}
    assert "tolerations" not in settings


def test_volumes_go_where_they_are_used() -> None:
    mounted = {
        name: {m["mountPath"] for m in settings.get("pvcMount", [])}
        for name, _, settings in executors(*compiled(*EVERYTHING))
    }
    scratch = {n for n, paths in mounted.items() if "/scratch" in paths}
    assert scratch == {"pretrain", "retrain", "end-record"}
    assert {n for n, paths in mounted.items() if "/data" in paths} == {"prepare", "find-version"}


def test_lost_tasks_are_tried_again_with_growing_delays() -> None:
    pipeline, _ = compiled("kubernetes.retries=3", "kubernetes.retry_delay=5")
    for name, task, _ in tasks(pipeline):
        assert task["retryPolicy"] == {
            "maxRetryCount": 3,
            "backoffDuration": "5s",
            "backoffFactor": 2.0,
            "backoffMaxDuration": "600s",
        }, name


def test_a_run_ends_in_time() -> None:
    _, platform = compiled("kubernetes.timeout_hours=1.5")
    assert platform["pipelineConfig"] == {"activeDeadlineSeconds": 5400}


def test_image_and_pull_settings() -> None:
    image = EVERYTHING[0].partition("=")[2]
    overrides = (*EVERYTHING, "kubernetes.image_pull_policy=Always")
    for _, container, settings in executors(*compiled(*overrides)):
        assert container["image"] == image
        assert settings["imagePullPolicy"] == "Always"
        assert [s["secretName"] for s in settings["imagePullSecret"]] == ["registry"]


# --- manifests and versions --------------------------------------------------------------------


def test_kubernetes_manifests_name_pipeline_version_and_namespace(tmp_path: Path) -> None:
    pipeline = compiling.build(params("convergence.max_rounds=2"))
    file = tmp_path / "manifests.yaml"
    compiling.write(pipeline, file, manifests=True, namespace="team")
    first, second = yaml.safe_load_all(file.read_text())
    assert (first["kind"], second["kind"]) == ("Pipeline", "PipelineVersion")
    assert {o["metadata"]["namespace"] for o in (first, second)} == {"team"}
    assert second["spec"]["pipelineName"] == first["metadata"]["name"] == "deep-clustering"
    assert second["metadata"]["name"] == compiling.version_name(pipeline, with_defaults=True)
    assert "comp-retrain" in second["spec"]["pipelineSpec"]["components"]
    assert "kubernetes" in second["spec"]["platformSpec"]["platforms"]


def test_the_version_changes_with_cluster_settings_and_if_asked_with_the_defaults() -> None:
    variants = ((), (), ("joint.gamma=0.3",), ("kubernetes.retries=7",))
    pipelines = [compiling.build(params("convergence.max_rounds=2", *each)) for each in variants]
    same, again, gamma, retries = map(compiling.version_name, pipelines)
    assert same == again == gamma != retries
    names = [compiling.version_name(pipeline, with_defaults=True) for pipeline in pipelines]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_the_code_version_changes_with_any_source_file_that_results_depend_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unimportant = ("notes.txt", "explore/server.py", "explore/static/explore.css")
    for name in ("model.py", "report/page.html.j2", "report/page.css", *unimportant):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(code, "PACKAGE", tmp_path)
    versions = [code.code_version()]
    for name in ("model.py", "report/page.html.j2", "report/page.css"):
        (tmp_path / name).write_text("2")
        versions.append(code.code_version())
    assert len(set(versions)) == 4
    for name in unimportant:
        (tmp_path / name).write_text("2")
    assert code.code_version() == versions[-1]


def test_a_password_in_the_repository_does_not_get_into_a_pipeline() -> None:
    repo = "https://me:hunter2@example.org/data.git"
    with pytest.raises(InputError, match="would stand in the pipeline") as caught:
        compiling.build(params(f"data={{source: dvc, repo: '{repo}', path: x, image_size: 8}}"))
    assert "hunter2" not in str(caught.value)


BAD_SETTINGS = {
    "kubernetes.gpu_tolerations=[{foo: bar}]": "gpu_tolerations",
    "kubernetes.resources.pretrain.memory=4000m": "memory",
    "kubernetes.resources.pretrain.cpu=2Gi": "cpu",
    "kubernetes.retries=99999999999": "retries",
    "kubernetes.timeout_hours=1e300": "timeout_hours",
    "kubernetes.timeout_hours=0.0001": "timeout_hours",
    "kubernetes.image=a b": "image",
    "kubernetes.s3_secret=Bad Name": "s3_secret",
    "kubernetes.node_selector={'bad key!': value}": "node_selector",
}


@pytest.mark.parametrize("override", BAD_SETTINGS)
def test_settings_that_kubernetes_would_refuse_are_refused_here(override: str) -> None:
    with pytest.raises(InputError, match=BAD_SETTINGS[override]):
        params(override)


def test_numbers_are_quantities_too() -> None:
    overrides = ("kubernetes.resources.embed.cpu=4", "kubernetes.resources.embed.cpu_limit=4.5")
    found = {name: container for name, container, _ in executors(*compiled(*overrides))}
    assert found["embed"]["resources"]["resourceCpuRequest"] == "4"
    assert found["embed"]["resources"]["resourceCpuLimit"] == "4.5"
