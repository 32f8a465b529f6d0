"""The client against the HTTP contract over real sockets."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from archipelago.actors.client import Client, Result, ServerError
from tests.helpers import png
from tests.stand_in import CLASSES, COLOURS, TOKEN, State, serving

ROOT = Path(__file__).resolve().parents[2]
SERVED = "http://localhost:8000"
DIGITS = png(COLOURS["digits"])
STRANGE = png((20, 240, 240))


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def url(state: State) -> Iterator[str]:
    with serving(state) as url:
        yield url


def test_images_of_every_kind_are_classified_in_one_request(
    url: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "rose.png"
    path.write_bytes(png(COLOURS["flowers"]))
    drawn = Image.new("CMYK", (8, 8))
    drawn.paste(Image.new("RGB", (8, 8), COLOURS["textures"]).convert("CMYK"))
    with Client(url) as client:
        results = client.classify([DIGITS, path, str(path), drawn, STRANGE], top_k=2)
    assert [result.task for result in results] == ["digits", "flowers", "flowers", "textures", None]
    assert len(state.asked) == 1 and state.asked[0]["images"][:2] == [DIGITS, path.read_bytes()]
    first, last = results[0], results[-1]
    assert isinstance(first, Result) and first.generation == 3
    assert [one.label for one in first.classes] == ["zero", "one"]
    assert first.classes[0].probability > 0.7 and first.task_confidence == 0.97
    assert (first.unseen, first.lambda_, first.groups[0].weight) == (False, 0.0, 1.0)
    assert (last.unseen, last.lambda_) == (True, 0.4)
    assert [group.task for group in last.groups] == ["digits", "flowers"]
    assert first.milliseconds["total"] == 9.14
    assert (first.domains[0].task, first.domains[0].probability) == ("digits", 0.9)
    assert (first.unseen_probability, last.unseen_probability) == (0.03, 0.88)
    assert not first.refused and not last.refused


def test_an_answer_may_be_withheld(url: str, state: State) -> None:
    state.abstains = True
    (result,) = Client(url).classify(STRANGE)
    assert result.refused and result.unseen and (result.classes, result.groups) == ((), ())
    assert len(result.domains) == 3


def test_one_image_a_given_task_and_own_labels(url: str, state: State) -> None:
    client = Client(url)
    (result,) = client.classify(STRANGE, task="digits", labels=["zebra", "a, b"])
    assert (result.task, result.classes[0].label) == ("digits", "zebra")
    assert state.asked[0]["labels"] == ["zebra", "a, b"] and state.asked[0]["top_k"] == 5
    assert client.classify([]) == [] and len(state.asked) == 1
    with pytest.raises(FileNotFoundError):
        client.classify("no-such.png")


def test_what_the_server_says_of_itself(url: str) -> None:
    client = Client(url + "/")
    assert (client.models().generation, client.models().backbone) == (3, "clip-tiny")
    tasks = client.tasks()
    assert [task.name for task in tasks] == ["textures", "digits", "flowers"]
    assert tasks[1].classes == tuple(CLASSES["digits"]) and len(tasks[1].examples) == 3


def test_a_busy_server_is_asked_again_when_it_says(
    url: str, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("archipelago.actors.client.time.sleep", waits.append)
    state.fail(503, "no replica is ready")
    state.fail(429, "the queue is full", **{"Retry-After": "7"})
    assert Client(url).classify(DIGITS)[0].task == "digits"
    assert len(waits) == 2 and 0.0 < waits[0] <= 0.1 and waits[1] == 7.0
    assert len(state.asked) == 3 and state.asked[0]["images"] == state.asked[2]["images"]


def test_refusals_are_one_line_and_final(url: str, state: State) -> None:
    client = Client(url, retries=1)
    with pytest.raises(ServerError, match=r"^image 1 is not a picture that can be read \(415\)$"):
        client.classify(b"no image")
    with pytest.raises(ServerError, match="no task cats; known: textures, digits, flowers"):
        client.classify(DIGITS, task="cats")
    assert len(state.asked) == 2, "a refusal was asked again"
    state.fail(429, "the queue is full\nand more", times=2, **{"Retry-After": "0"})
    with pytest.raises(ServerError) as caught:
        client.classify(DIGITS)
    assert (caught.value.code, caught.value.message) == (429, "the queue is full")
    assert caught.value.retry_after == 0 and len(state.asked) == 4


def test_changes_need_the_token_and_are_sent_once(url: str, state: State) -> None:
    with pytest.raises(ServerError, match=r"bearer token \(401\)"):
        Client(url).publish(4)
    client = Client(url, TOKEN)
    assert client.publish(4) == 4 and state.manifest == 4
    assert client.rollback(3) == 5 and state.manifest == 3
    assert client.forget("digits", erase=True) == 6 and "digits" not in state.learned
    with pytest.raises(ServerError, match=r"no task digits \(404\)"):
        client.forget("digits")
    assert sum("admin" in path for _, path in state.requests) == 5


def test_a_lost_connection_is_asked_again_but_changes_are_not(state: State) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        connections = []

        def hang_up(times: int) -> None:
            for _ in range(times):
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.close()
                connections.append(connection)

        thread = threading.Thread(target=hang_up, args=(1,), daemon=True)
        thread.start()
        client = Client(f"http://127.0.0.1:{port}", TOKEN)
        with pytest.raises(ServerError, match="no answer from") as caught:
            client.publish(4)
        thread.join(5)
        assert caught.value.code == 0 and len(connections) == 1 and "\n" not in str(caught.value)
        thread = threading.Thread(target=hang_up, args=(2,), daemon=True)
        thread.start()
        waiting: list[Result] = []
        asking = threading.Thread(target=lambda: waiting.extend(client.classify(DIGITS)))
        asking.start()
        thread.join(5)
        assert len(connections) == 3
    with serving(state, port=port):
        asking.join(10)
        assert waiting[0].task == "digits"


def blocks(language: str) -> list[str]:
    """The examples of asking a served model."""
    text = (ROOT / "docs" / "serving.md").read_text()
    asking = text[text.index("## Ask it") : text.index("## What answers")]
    return [b for b in re.findall(rf"```{language}\n(.*?)```", asking, re.S) if SERVED in b]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_examples_of_asking_work(url: str, state: State, tmp_path: Path) -> None:
    (tmp_path / "seven.png").write_bytes(DIGITS)
    (tmp_path / "rose.jpg").write_bytes(png(COLOURS["flowers"]))
    environment = {**os.environ, "ARCHIPELAGO_ADMIN_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    lines = "".join(blocks("sh")).replace(SERVED, url).splitlines()
    script = "set -e\n" + "\n".join(line.replace("curl ", "curl -fsS ", 1) for line in lines)
    python = "".join(blocks("python")).replace(SERVED, url)
    how = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    asked = subprocess.run(["bash", "-c", script], **how)
    assert asked.returncode == 0, asked.stderr
    assert len(state.requests) == len(lines) >= 6 and state.manifest == 2
    assert [len(one["images"]) for one in state.asked] == [1, 2, 1]
    assert state.asked[1]["labels"] == ["a seven", "a rose"] and state.asked[2]["task"] == "digits"
    asked = subprocess.run([sys.executable, "-c", python], **how)
    assert asked.stdout == "digits False zero\nflowers False rose\n", asked.stderr


def test_the_client_is_light() -> None:
    heavy = "{'ray', 'torch', 'numpy', 'PIL', 'pydantic', 'fastapi'}"
    code = (
        "import sys, archipelago.actors.client\n"
        f"assert not {heavy} & sys.modules.keys(), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
