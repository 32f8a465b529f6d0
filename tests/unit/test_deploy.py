"""What `deploy/` tells Docker, Kubernetes and Ray, as far as it can be checked without them."""

from __future__ import annotations

import copy
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError

from archipelago.actors import preflight
from archipelago.pipeline import config
from archipelago.pipeline.settings import Settings
from tests.unit.kuberay import Cluster, RayJob, RayService, check_object

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text()))


def job() -> RayJob:
    return RayJob.model_validate(documents("rayjob.yaml")[0])


def service() -> RayService:
    return RayService.model_validate(documents("rayservice.yaml")[0])


def clusters() -> list[Cluster]:
    return [job().spec.rayClusterSpec, service().spec.rayClusterConfig]


def declared() -> list[dict[str, Any]]:
    """What Serve is told: on machines, and on Kubernetes."""
    texts = [(DEPLOY / "serve.yaml").read_text(), service().spec.serveConfigV2]
    return [yaml.safe_load(text) for text in texts]


def pods(cluster: Cluster) -> list[dict[str, Any]]:
    groups = [cluster.headGroupSpec, *cluster.workerGroupSpecs]
    return [group.template["spec"] for group in groups]


def test_the_dockerfile_is_well_made() -> None:
    lint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    found = subprocess.run([lint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_builder_gets_what_the_dockerfile_copies_and_no_more() -> None:
    copied = set()
    for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M):
        copied |= set(sources.split())
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    user = re.search(r"^USER (\d+)$", DOCKERFILE, re.M)
    assert user and int(user[1]) > 0


def test_volumes_are_objects_of_kubernetes() -> None:
    names = set()
    for document in documents("storage.yaml"):
        check_object(document)
        names.add(document["metadata"]["name"])
    claimed = {
        volume["persistentVolumeClaim"]["claimName"]
        for cluster in clusters()
        for pod in pods(cluster)
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claimed == names


def test_clusters_run_the_tested_ray_and_the_image_that_is_built() -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for cluster in clusters():
        assert pinned and cluster.rayVersion == pinned[1]
        for pod in pods(cluster):
            (container,) = pod["containers"]
            assert container["image"] == f"archipelago:{version}"
            assert f"-t {container['image']} ." in DOCKERFILE
            assert pod["securityContext"]["runAsNonRoot"]
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts == {volume["name"] for volume in pod["volumes"]}
            assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}


def job_settings() -> Settings:
    return config.load(shlex.split(job().spec.entrypoint)[2:])


def test_the_job_s_command_is_right_and_fits_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = job().spec
    program, script, *_ = shlex.split(spec.entrypoint)
    home = re.search(r"^WORKDIR (\S+)$", DOCKERFILE, re.M)
    assert program == "python" and home
    assert (ROOT / Path(script).relative_to(home[1])).exists()
    settings = job_settings()
    mounted = {
        mount["mountPath"]: mount.get("readOnly", False)
        for mount in pods(spec.rayClusterSpec)[1]["containers"][0]["volumeMounts"]
    }
    assert settings.run_dir and settings.run_dir.startswith("/runs/") and not mounted["/runs"]
    assert settings.stream.root and settings.stream.root.startswith("/data/")
    environment = yaml.safe_load(spec.runtimeEnvYAML)["env_vars"]
    assert all(isinstance(value, str) for value in environment.values())

    nodes = []
    for group in spec.rayClusterSpec.workerGroupSpecs:
        limits = group.template["spec"]["containers"][0]["resources"]["limits"]
        gpus = float(limits.get("nvidia.com/gpu", 0))
        node = {"CPU": float(limits["cpu"]), "GPU": gpus}
        nodes += [{"Alive": True, "Resources": node}] * group.replicas
    monkeypatch.setattr(preflight.ray, "nodes", lambda: nodes)
    preflight.check_batch(settings)
    preflight.check_resources(settings.cluster)


@pytest.mark.parametrize("index", [0, 1], ids=["serve.yaml", "rayservice.yaml"])
def test_what_serve_is_told_is_legal(index: int) -> None:
    from ray.serve.schema import ServeDeploySchema

    document = declared()[index]
    (app,) = ServeDeploySchema.model_validate(document).applications
    assert document["http_options"].keys() <= {"host", "port", "request_timeout_s"}
    assert (app.route_prefix, app.import_path) == ("/", "archipelago.actors.endpoint:build")
    assert app.args["run_dir"] == job_settings().run_dir, "another run than the one that is learned"
    module, _, name = app.import_path.partition(":")
    assert getattr(importlib.import_module(module), name)(app.args) is not None


def test_the_replicas_fit_the_pods_and_find_the_run() -> None:
    cluster, args = service().spec.rayClusterConfig, declared()[1]["applications"][0]["args"]
    (group,) = cluster.workerGroupSpecs
    (container,) = group.template["spec"]["containers"]
    limits = container["resources"]["limits"]
    ingress = 0.1
    assert args["num_gpus"] <= float(limits["nvidia.com/gpu"])
    assert args["num_cpus"] + (args["ingresses"] + 1) * ingress <= float(limits["cpu"])
    assert (group.minReplicas, group.maxReplicas) == (args["replicas_min"], args["replicas_max"])
    for pod in pods(cluster):
        environment = {one["name"] for one in pod["containers"][0]["env"]}
        assert environment == {"ARCHIPELAGO_ADMIN_TOKEN"}
        assert "/runs" in {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        ports = {port["containerPort"] for port in pod["containers"][0]["ports"]}
        assert declared()[1]["http_options"]["port"] in ports


def test_the_board_shows_what_is_measured() -> None:
    board = json.loads((DEPLOY / "grafana.json").read_text())
    asked = " ".join(t["expr"] for panel in board["panels"] for t in panel["targets"])
    shown = {
        re.sub(r"_(total|bucket)$", "", name)
        for name in re.findall(r"ray_(archipelago_\w+)", asked)
    }
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 6
    made = r'(?:Counter|Gauge|Histogram)\(\s*"(archipelago_\w+)"'
    sources = " ".join(file.read_text() for file in (ROOT / "actors").rglob("*.py"))
    assert shown == set(re.findall(made, sources))


def broken(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    document = copy.deepcopy(documents("rayjob.yaml")[0])
    change(document["spec"])
    return document


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(entryPoint="x"),
        lambda spec: spec.update(backoffLimit="3"),
        lambda spec: spec.update(submissionMode="Http"),
        lambda spec: spec["rayClusterSpec"].pop("headGroupSpec"),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(x=0),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(volume=[]),
        lambda spec: (
            spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
        ).update(ports=[{"containerPort": "http"}]),
    ],
)
def test_the_check_of_manifests_can_fail(change: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(ValidationError):
        RayJob.model_validate(broken(change))


def test_the_check_of_objects_can_fail() -> None:
    claim = documents("storage.yaml")[0]
    claim["spec"]["acessModes"] = claim["spec"].pop("accessModes")
    with pytest.raises(kubernetes_validate.ValidationError):
        check_object(claim)
