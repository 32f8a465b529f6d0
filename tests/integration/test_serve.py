"""The endpoint over real HTTP in a real Ray: generations, admin, errors, forgetting."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import tritonclient.http as triton
from ray import serve

from archipelago.actors.client import Client, ServerError
from archipelago.actors.ingress import Ingress
from archipelago.actors.publisher import running_replicas
from archipelago.actors.publishing import publish_newest
from archipelago.actors.ray_head import free_ports
from archipelago.jobs import forget as forget_job
from archipelago.jobs import publish, rollback
from archipelago.jobs import serve as job
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.serving.model import run_settings
from archipelago.pipeline.store import RunFolder
from tests.running import wait_until
from tests.serving import TOKEN, Endpoint, Load, call
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import SERVING, copy_run, point, test_images


@pytest.fixture(scope="module")
def endpoint(
    local_ray: str,
    served_world: World,
    served_run: RunFolder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Endpoint]:
    """One for all tests of this module: two replicas; the first two of four stages published."""
    run = copy_run(served_run, tmp_path_factory.mktemp("serve") / "run")
    run.folder.delete("serving.json")
    point(run, 2)
    port = free_ports(1)[0]
    serving = f"port={port} replicas_min=2 replicas_max=2 num_cpus=0.1 canary.floor=0.0"
    serving += " max_body_mib=1 poll_s=0.5 batch_size=2 queue=4"
    words = [f"run_dir={run.uri}", "publish=candidate"]
    words += [f"serving.{word}" for word in serving.split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHIPELAGO_ADMIN_TOKEN", TOKEN)
        assert job.main(words) == 0
    try:
        yield Endpoint(f"http://127.0.0.1:{port}", run, served_world)
    finally:
        assert job.main([*words, "down=true"]) == 0


def test_a_stage_is_published_under_load_and_nothing_else_changes(endpoint: Endpoint) -> None:
    url, new = endpoint.url, TASKS[2]
    old = endpoint.body(TASKS[0], 3, task=TASKS[0])
    assert call(f"{url}/v1/classify", endpoint.body(new, task=new))[0] == 404
    _, before = call(f"{url}/v1/classify", old)
    with Load(url, old) as load:
        status, told = endpoint.admin("publish", manifest=3)
        assert status == 200, told
        for _ in range(8):  # both replicas
            status, answer = call(f"{url}/v1/classify", endpoint.body(new, task=new))
            assert status == 200 and answer["generation"] == told["generation"] == 2
    assert len(told["replicas"]) == 2 and told["manifest"] == 3
    assert load.failures == [] and len(load.results) > 5
    for *_, answer in load.results:
        for a, b in zip(answer["results"], before["results"], strict=True):
            for mine, theirs in zip(a["classes"], b["classes"], strict=True):
                assert mine["label"] == theirs["label"]
                assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
    _, tasks = call(f"{url}/v1/tasks")
    assert [task["name"] for task in tasks["tasks"]] == list(TASKS[:3])


def test_a_bad_group_is_refused_with_the_reason(endpoint: Endpoint) -> None:
    run, url = endpoint.run, endpoint.url
    _, before = call(f"{url}/v1/models")
    ref = run.groups.list()[3]
    assert run.folder.local is not None
    file = run.folder.local / "groups" / ref.folder / "group.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    status, told = endpoint.admin("publish", manifest=4)
    file.write_bytes(whole)
    assert status == 422 and "sha256" in told["error"]["message"]
    _, after = call(f"{url}/v1/models")
    assert (after["generation"], after["manifest"]) == (before["generation"], before["manifest"])
    assert endpoint.admin("publish", manifest=99)[0] == 404
    assert call(f"{url}/v1/admin/publish", {"manifest": 1}, "wrong")[0] == 401


def test_rollback_is_a_new_generation(endpoint: Endpoint) -> None:
    _, before = call(f"{endpoint.url}/v1/models")
    status, told = endpoint.admin("rollback", manifest=1)
    assert status == 200 and told["generation"] == before["generation"] + 1
    _, after = call(f"{endpoint.url}/v1/models")
    assert after["manifest"] == 1 and after["history"][-1]["reason"] == "rollback"
    status, again = endpoint.admin("publish", manifest=4)
    assert status == 200 and again["generation"] == told["generation"] + 1


def test_commands_change_the_version_in_this_ray_and_at_an_address(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARCHIPELAGO_ADMIN_TOKEN", TOKEN)
    words = [f"run_dir={endpoint.run.uri}"]
    _, before = call(f"{endpoint.url}/v1/models")
    for verb, more, manifest in (
        (rollback, ["manifest=2"], 2),
        (publish, ["manifest=3"], 3),
        (rollback, [f"serving.url={endpoint.url}"], 2),
        (publish, [f"serving.url={endpoint.url}"], 4),
    ):
        assert verb.main([*words, *more]) == 0
        _, after = call(f"{endpoint.url}/v1/models")
        assert after["manifest"] == manifest
        said = f"manifest {manifest} answers: generation {after['generation']}"
        assert said in " ".join(capsys.readouterr().out.split())
    assert after["generation"] == before["generation"] + 4


def test_http_says_what_python_says(endpoint: Endpoint) -> None:
    """Equal decisions, probabilities within 1e-4; that Python says what is measured is tested in
    one process (tests/unit/test_learned.py)."""
    _, models = call(f"{endpoint.url}/v1/models")
    model = LearnedModel.open(endpoint.run.uri, models["manifest"])
    for labels in (None, ["zebra", "cats 1", "boats 0"]):
        for task in TASKS:
            images = test_images(endpoint.world, task, 6)
            more = {"top_k": 16} if labels is None else {"top_k": 16, "labels": labels}
            status, told = call(f"{endpoint.url}/v1/classify", endpoint.body(task, 6, **more))
            assert status == 200
            for said, wanted in zip(
                told["results"], model.answer(images, labels, top_k=16), strict=True
            ):
                assert (said["task"], said["unseen"]) == (wanted.task, wanted.unseen)
                assert said["unseen_probability"] == pytest.approx(
                    wanted.unseen_probability, abs=1e-4
                )
                assert {c["label"]: c["probability"] for c in said["classes"]} == pytest.approx(
                    dict(wanted.classes), abs=1e-4
                )
                if wanted.classes[0][1] - wanted.classes[1][1] > 1e-4:
                    assert said["classes"][0]["label"] == wanted.classes[0][0]


def test_errors_over_http(endpoint: Endpoint) -> None:
    url = f"{endpoint.url}/v1/classify"
    good = endpoint.body()
    for code, body in (
        (404, {**good, "task": "nobody"}),
        (413, {"images": ["A" * 2**20]}),
        (415, {"images": [base64.b64encode(b"no image").decode()]}),
        (422, {"images": [""]}),
        (422, {**good, "top_k": 0}),
    ):
        status, answer = call(url, body)
        assert status == answer["error"]["code"] == code
        assert "\n" not in answer["error"]["message"]
    request = urllib.request.Request(url, b"{", {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 400
    many = endpoint.body(count=6)
    with ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(lambda _: call(url, many), range(96)))
    assert {status for status, _ in answers} == {200, 429}
    status, answer = call(f"{endpoint.url}/v2/health/ready")
    assert status == 200 and answer == {"ready": True}


def test_vectors_and_tensors_over_http(endpoint: Endpoint) -> None:
    """By either replica, whichever answers: the clients that people have."""
    model = LearnedModel.open(endpoint.run.uri)
    pixels, texts = test_images(endpoint.world, TASKS[0], 3), ["a cat", "boats 0"]
    shown = [base64.b64decode(str(file)) for file in endpoint.body(count=3)["images"]]
    with Client(endpoint.url) as client:
        for _ in range(4):
            found = client.embed(shown, texts)
            np.testing.assert_allclose(found.images, model.embed(pixels), atol=1e-5)
            np.testing.assert_allclose(found.texts, model.embed_texts(texts), atol=1e-5)
        assert np.shape(client.similarity(shown, texts)) == (3, 2)
        with pytest.raises(ServerError, match="422"):
            client.embed()
    wanted = model.answer(pixels, task=TASKS[0])
    protocol = triton.InferenceServerClient(endpoint.url.removeprefix("http://"))
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    said = protocol.infer("archipelago", [tensor], parameters={"task": TASKS[0]})
    labels = [[text.decode() for text in row] for row in said.as_numpy("label")]
    assert labels == [[label for label, _ in answer.classes] for answer in wanted]
    with pytest.raises(triton.InferenceServerException, match="task 'nobody' is not learned"):
        protocol.infer("archipelago", [tensor], parameters={"task": "nobody"})
    (stats,) = protocol.get_inference_statistics("archipelago")["model_stats"]
    assert stats["inference_count"] >= 4 * 5 + 5 + 3
    protocol.close()


def test_a_learning_run_publishes_to_the_endpoint(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same Ray, from another one over HTTP, or not at all: learning never fails."""
    run, newest = endpoint.run, len(TASKS)
    chosen = run_settings(run.read()).model_copy(update={"serve": "on"})
    monkeypatch.setenv("ARCHIPELAGO_ADMIN_TOKEN", TOKEN)

    def publish(publish: str = "auto", **serving: object) -> str | None:
        parts = {"publish": publish, "serving": SERVING.model_copy(update=serving)}
        with run.lock():
            publish_newest(run, chosen.model_copy(update=parts))
        return run.journal.events()[-1]["event"]

    for url in (None, endpoint.url):
        assert endpoint.admin("rollback", manifest=2)[0] == 200
        assert publish(url=url) == "published"
        _, models = call(f"{endpoint.url}/v1/models")
        assert models["manifest"] == newest and models["candidates"] == []
    assert endpoint.admin("rollback", manifest=2)[0] == 200
    assert publish("candidate") == "candidate"
    _, models = call(f"{endpoint.url}/v1/models")
    assert models["manifest"] == 2 and models["candidates"] == [3, 4]
    assert publish(url="http://127.0.0.1:9") == "not-published"
    assert publish(name="nobody") == "not-published"


def test_a_killed_replica_costs_no_request(endpoint: Endpoint) -> None:
    assert endpoint.admin("publish", manifest=4)[0] == 200
    before = running_replicas("archipelago")
    _, about = call(f"{endpoint.url}/v1/models")
    with Load(endpoint.url, endpoint.body(task=TASKS[0])) as load:
        os.kill(model_pids("archipelago")[0], signal.SIGKILL)
        wait_until(lambda: len(running_replicas("archipelago") - before) == 1, "a replacement")
        status, told = endpoint.admin("publish", manifest=4)  # waits for both
    assert load.failures == [] and len(load.results) > 10
    assert status == 200 and told["generation"] == about["generation"]
    assert len(set(told["replicas"]) - before) == 1
    for _ in range(8):
        status, answer = call(f"{endpoint.url}/v1/classify", endpoint.body(TASKS[3], task=TASKS[3]))
        assert status == 200 and answer["generation"] == about["generation"]


def test_the_page_is_there(endpoint: Endpoint) -> None:
    with urllib.request.urlopen(f"{endpoint.url}/", timeout=10) as page:
        text = page.read().decode()
        assert page.headers["content-type"].startswith("text/html") and "<html" in text.lower()
    for file in re.findall(r'(?:src|href)="([^":#]+)"', text):
        with urllib.request.urlopen(f"{endpoint.url}/{file}", timeout=10) as part:
            assert part.status == 200


def model_pids(app: str) -> list[int]:
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    deployments = client.get_serve_details()["applications"][app]["deployments"]
    return [r["pid"] for r in deployments["Model"]["replicas"] if r["pid"]]


def test_when_nobody_answers_it_says_when_to_come_again(endpoint: Endpoint) -> None:
    """An ingress of little patience before the same model, which is held still meanwhile."""
    impatient = SERVING.model_copy(update={"timeout_s": 1}).model_dump(mode="json")
    body = serve.deployment(name="Ingress", ray_actor_options={"num_cpus": 0.1})(
        serve.ingress()(Ingress)
    )
    handles = [serve.get_deployment_handle(name, "archipelago") for name in ("Model", "Publisher")]
    serve.run(body.bind(impatient, None, *handles), name="impatient", route_prefix="/impatient")
    url = f"{endpoint.url}/impatient/v1/classify"
    request = urllib.request.Request(
        url, json.dumps(endpoint.body()).encode(), {"Content-Type": "application/json"}
    )
    pids = model_pids("archipelago")
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert refused.value.code == 503 and int(refused.value.headers["Retry-After"]) >= 1
    error = json.loads(refused.value.read())["error"]
    assert error["code"] == 503 and "\n" not in error["message"]
    wait_until(lambda: call(url, endpoint.body())[0] == 200, "the model's answer")
    serve.delete("impatient")


def test_ray_exports_what_is_counted(endpoint: Endpoint) -> None:
    """As Prometheus reads it, from the port that every node has for it."""
    for task, code in ((TASKS[0], 200), ("nobody", 404)):
        assert call(f"{endpoint.url}/v1/classify", endpoint.body(task=task))[0] == code
    with Client(endpoint.url) as client:
        client.embed(texts="a cat")
    wanted = {
        "embedded_total": 'kind="text"',
        "images_total": f'task="{TASKS[0]}"',
        "latency_ms_count": f'task="{TASKS[0]}"',
        "errors_total": 'code="404"',
        "generation_lag": "",
    }

    def exported() -> dict[str, list[float]]:
        lines = []
        for node in ray.nodes():
            url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=10) as page:
                lines += page.read().decode().splitlines()
        return {
            metric: [
                float(line.rsplit(" ", 1)[1])
                for line in lines
                if line.startswith(f"ray_archipelago_{metric}{{") and label in line
            ]
            for metric, label in wanted.items()
        }

    wait_until(lambda: all(exported().values()), "the metrics")
    found = exported()
    assert sum(found["images_total"]) >= 1 and sum(found["latency_ms_count"]) >= 1
    assert sum(found["errors_total"]) >= 1 and 0.0 in found["generation_lag"]


def test_forget_over_http(endpoint: Endpoint) -> None:
    """The last domain: nobody borrows from it, so the others' answers stay to the bit."""
    assert endpoint.admin("publish", manifest=4)[0] == 200
    last, url = TASKS[3], f"{endpoint.url}/v1/classify"
    body = endpoint.body(TASKS[1], 1, task=TASKS[1])
    _, before = call(url, body)
    status, told = endpoint.admin("forget", task=last, erase=True)
    assert status == 200 and told["bytes"]["after"] < told["bytes"]["before"]
    assert told["changes"] == dict.fromkeys(TASKS[:3], 0.0)
    assert call(url, endpoint.body(last, task=last))[0] == 404
    _, after = call(url, body)
    assert after["generation"] == told["generation"]
    assert after["results"][0]["classes"] == before["results"][0]["classes"]
    assert all(ref.name != last for ref in endpoint.run.groups.list())
    assert endpoint.admin("forget", task="nobody")[0] == 404
    event = endpoint.run.journal.last("forgotten")
    assert event and event["task"] == last and event["erased"]
    shown = json.dumps([str(p) for p in Path(endpoint.run.uri).rglob(f"*{last}*")])
    assert shown == "[]", "no file names it any more"


def test_dependents_are_measured_by_the_endpoint(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the test split, which the publisher reads; the job that asked for it waits and tells."""
    run = endpoint.run
    document = run.read()
    place = {"reader": "parquet", "root": str(endpoint.world.backbone.parent / "stream")}
    document["config"]["stream"] |= place
    run.folder.write_json("run.json", document)
    _, tasks = call(f"{endpoint.url}/v1/tasks")
    cards = {ref.name: json.loads(run.groups.read(ref, "task.json")) for ref in run.groups.list()}
    served = [task["name"] for task in tasks["tasks"]]
    borrowed = {name: [n["task"] for n in cards[name]["neighbours"]] for name in served}
    lender = next(names[0] for names in borrowed.values() if names)
    monkeypatch.setenv("ARCHIPELAGO_ADMIN_TOKEN", TOKEN)
    words = [f"run_dir={run.uri}", f"task={lender}", f"serving.url={endpoint.url}"]
    assert forget_job.main(words) == 0
    said = capsys.readouterr().out
    event = run.journal.last("forgotten")
    assert event and event["task"] == lender
    dependents = {item["task"]: item["test"] for item in event["dependents"]}
    assert set(dependents) == {name for name, names in borrowed.items() if lender in names}
    for name, test in dependents.items():
        figures = f"{test['before']:.1f} % -> {test['after']:.1f} % on its test split"
        assert f"{name} borrowed from it" in said and figures in said
    changed = {item["task"]: item["change"] for item in event["dependents"]}
    for name, change in changed.items():
        assert change > 0 and f"{name} {change:.3g}" in said, "against what it was"
