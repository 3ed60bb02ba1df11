"""The compiled pipeline: its size, its shape, and what every task asks of the cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import compiling
from pipelines.deep_clustering import pipeline_parameters
from pipelines.sharing import share_components
from vitdc import code
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


def compiled(tmp_path: Path, *overrides: str, max_rounds: int = 3) -> tuple[dict, dict]:
    """The pipeline's specification and that of Kubernetes, as a cluster reads them."""
    chosen = params(f"convergence.max_rounds={max_rounds}", *overrides)
    compiling.write(compiling.build(chosen), tmp_path / "pipeline.yaml")
    pipeline, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
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


@pytest.mark.parametrize(("max_rounds", "limit"), [(10, 300_000), (20, 700_000)])
def test_the_compiled_pipeline_fits_into_a_cluster(
    tmp_path: Path, max_rounds: int, limit: int
) -> None:
    pipeline = compiling.build(params(*EVERYTHING, f"convergence.max_rounds={max_rounds}"))
    size = compiling.write(pipeline, tmp_path / "pipeline.yaml")
    assert size == (tmp_path / "pipeline.yaml").stat().st_size <= limit


def test_too_many_rounds_are_refused_with_their_size(tmp_path: Path) -> None:
    pipeline = compiling.build(params("convergence.max_rounds=40"))
    with pytest.raises(InputError, match=r"has 1,\d{3},\d{3} bytes.*no more than 700,000"):
        compiling.write(pipeline, tmp_path / "pipeline.yaml")
    assert not (tmp_path / "pipeline.yaml").exists()


@pytest.mark.parametrize("max_rounds", [0, -1])
def test_at_least_one_round_is_needed(max_rounds: int) -> None:
    with pytest.raises(InputError, match="at least 1 round"):
        compiling.build(params(), max_rounds=max_rounds)


def test_fewer_rounds_than_the_parameters_ask_for_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"convergence\.max_rounds is 10; compile at least as many"
    ):
        compiling.build(params(), max_rounds=9)


# --- shape -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_rounds", [1, 2, 4])
def test_every_round_lies_in_the_round_before_and_may_end_in_the_evaluation(
    tmp_path: Path, max_rounds: int
) -> None:
    pipeline, _ = compiled(tmp_path, max_rounds=max_rounds)
    depth = {name: path[2::2] for name, _, path in tasks(pipeline)}
    for number in range(1, max_rounds + 1):
        around = [f"round-{n}" for n in range(2, number + 1)]
        for step in STEPS_OF_A_ROUND:
            assert depth[f"{step} (round {number})"] == around
        last = number == max_rounds
        stop = [] if last else [f"stop-after-round-{number}"]
        assert depth[f"evaluate (round {number})"] == around + stop
    assert len(depth) == 4 + 3 + 5 * max_rounds


def test_the_branches_of_a_round_exclude_each_other(tmp_path: Path) -> None:
    pipeline, _ = compiled(tmp_path)
    conditions = {
        task["taskInfo"]["name"]: task["triggerPolicy"]["condition"]
        for component in pipeline["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "condition" in task.get("triggerPolicy", {})
    }
    assert set(conditions) == {"round-2", "stop-after-round-1", "round-3", "stop-after-round-2"}
    for number in (1, 2):
        go_on = conditions[f"round-{number + 1}"]
        assert go_on.endswith("== 'continue'")
        assert conditions[f"stop-after-round-{number}"] == f"!({go_on})"


def test_the_check_knows_how_many_rounds_there_are(tmp_path: Path) -> None:
    pipeline, _ = compiled(tmp_path)
    for name, task, _ in tasks(pipeline):
        if name.startswith("check"):
            assert task["inputs"]["parameters"]["max_rounds"]["runtimeValue"]["constant"] == 3


def test_an_exit_handler_runs_after_everything(tmp_path: Path) -> None:
    pipeline, _ = compiled(tmp_path)
    ending = pipeline["root"]["dag"]["tasks"]["end-record"]
    assert ending["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert "taskFinalStatus" in ending["inputs"]["parameters"]["status"]
    assert len(pipeline["root"]["dag"]["tasks"]) == 2


def test_the_parameters_are_the_sections_with_the_values_of_the_file(tmp_path: Path) -> None:
    pipeline, _ = compiled(tmp_path, "joint.gamma=0.25")
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
        max_rounds=3,
        code=compiling.code_version(),
        configure=configure,
    )
    assert facts(shared) == facts(plain)
    assert len(facts(shared)) == 4 + 3 + 5 * 3
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


def test_no_task_runs_as_root_and_all_have_requests_and_limits(tmp_path: Path) -> None:
    for name, container, settings in executors(*compiled(tmp_path)):
        assert settings["securityContext"] == {
            "runAsUser": "10001",
            "runAsGroup": "10001",
            "runAsNonRoot": True,
        }, name
        resources = container["resources"]
        for kind in ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit"):
            assert resources[f"resource{kind}"], name
        assert settings["podMetadata"]["labels"] == {"app.kubernetes.io/part-of": "vitdc"}
        assert {"mountPath": "/tmp", "volumeName": "tmp", "sizeLimit": "4Gi"} in settings[  # noqa: S108
            "emptyDirMounts"
        ]
        assert "latest" not in container["image"]


def test_credentials_go_only_to_the_tasks_that_use_them(tmp_path: Path) -> None:
    secrets: dict[str, set[str]] = {}
    for name, _, settings in executors(*compiled(tmp_path)):
        names = {secret["secretName"] for secret in settings.get("secretAsEnv", [])}
        names |= {entry["configMapName"] for entry in settings.get("configMapAsEnv", [])}
        secrets[name] = names
    images, records = (
        {"vitdc-endpoints", "vitdc-s3"},
        {"vitdc-endpoints", "vitdc-s3", "vitdc-mlflow"},
    )
    assert secrets == {
        "find-version": images,
        "prepare": images,
        "start-record": records,
        "check": records,
        "evaluate": records,
        "end-record": records,
        "pretrain": {"vitdc-endpoints", "vitdc-mlflow"},
        "embed": set(),
        "cluster": set(),
        "retrain": {"vitdc-endpoints", "vitdc-mlflow"},
    }


def test_no_task_is_given_a_variable_that_kfps_mlflow_plugin_sets(tmp_path: Path) -> None:
    for name, container, settings in executors(*compiled(tmp_path)):
        variables = {each["name"] for each in container.get("env", [])}
        for source in settings.get("secretAsEnv", []) + settings.get("configMapAsEnv", []):
            variables |= {each["envVar"] for each in source["keyToEnv"]}
        assert not {each for each in variables if each.startswith("MLFLOW_")}, name


def test_tasks_with_side_effects_always_run_and_the_others_are_cached(tmp_path: Path) -> None:
    pipeline, _ = compiled(tmp_path)
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
    pipeline, _ = compiled(tmp_path, "kubernetes.caching=false")
    assert not any(task["cachingOptions"].get("enableCache") for _, task, _ in tasks(pipeline))


def test_every_cached_task_has_the_code_version(tmp_path: Path) -> None:
    pipeline, _ = compiled(tmp_path)
    for name, task, _ in tasks(pipeline):
        if task["cachingOptions"].get("enableCache"):
            code = task["inputs"]["parameters"]["code"]["runtimeValue"]["constant"]
            assert code == compiling.code_version(), name


def test_gpu_tasks_get_their_nodes(tmp_path: Path) -> None:
    found = {name: both for name, *both in executors(*compiled(tmp_path, *EVERYTHING))}
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


def test_volumes_go_where_they_are_used(tmp_path: Path) -> None:
    mounted = {
        name: {m["mountPath"] for m in settings.get("pvcMount", [])}
        for name, _, settings in executors(*compiled(tmp_path, *EVERYTHING))
    }
    scratch = {n for n, paths in mounted.items() if "/scratch" in paths}
    assert scratch == {"pretrain", "retrain", "end-record"}
    assert {n for n, paths in mounted.items() if "/data" in paths} == {"prepare", "find-version"}


def test_lost_tasks_are_tried_again_with_growing_delays(tmp_path: Path) -> None:
    pipeline, _ = compiled(tmp_path, "kubernetes.retries=3", "kubernetes.retry_delay=5")
    for name, task, _ in tasks(pipeline):
        assert task["retryPolicy"] == {
            "maxRetryCount": 3,
            "backoffDuration": "5s",
            "backoffFactor": 2.0,
            "backoffMaxDuration": "600s",
        }, name


def test_a_run_ends_in_time(tmp_path: Path) -> None:
    _, platform = compiled(tmp_path, "kubernetes.timeout_hours=1.5")
    assert platform["pipelineConfig"] == {"activeDeadlineSeconds": 5400}


def test_image_and_pull_settings(tmp_path: Path) -> None:
    image = EVERYTHING[0].partition("=")[2]
    overrides = (*EVERYTHING, "kubernetes.image_pull_policy=Always")
    for _, container, settings in executors(*compiled(tmp_path, *overrides)):
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


def test_a_failed_compilation_leaves_an_older_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text("precious")
    with pytest.raises(InputError, match="compile fewer rounds"):
        compiling.write(compiling.build(params("convergence.max_rounds=40")), file)
    assert file.read_text() == "precious"


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


def test_numbers_are_quantities_too(tmp_path: Path) -> None:
    overrides = ("kubernetes.resources.embed.cpu=4", "kubernetes.resources.embed.cpu_limit=4.5")
    found = {name: container for name, container, _ in executors(*compiled(tmp_path, *overrides))}
    assert found["embed"]["resources"]["resourceCpuRequest"] == "4"
    assert found["embed"]["resources"]["resourceCpuLimit"] == "4.5"


def test_nothing_is_trained_before_it_is_known_that_it_can_be_recorded(tmp_path: Path) -> None:
    pipeline, _ = compiled(tmp_path)
    (pretrain,) = (task for name, task, _ in tasks(pipeline) if name.startswith("pretrain"))
    assert "start-record" in pretrain["dependentTasks"]
