"""Stored state of every kind of damage: named in one line, with a mend that works."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from archipelago.pipeline.errors import IntegrityError, LockedError, UserError
from archipelago.pipeline.model.backbone import load_backbone
from archipelago.pipeline.serving.pointer import (
    history,
    newest_pointer,
    next_pointer,
    read_pointer,
    write_pointer,
)
from archipelago.pipeline.settings import BackboneSettings
from archipelago.pipeline.store import Folder, RunFolder
from archipelago.pipeline.store.lease import Lease
from archipelago.pipeline.store.lock import Holder
from tests.unit.test_backbone import save_local
from tests.unit.tiny_serving import copy_run

DEEP = b"[" * 100_000 + b"]" * 100_000
RUBBISH = [b"", b"\xff\xfe", b"null", b"7", b"[]", b'"text"', b"{}", b"{", DEEP, b'{"a": 1e999}']


@pytest.fixture
def run(served_run: RunFolder, tmp_path: Path) -> RunFolder:
    return copy_run(served_run, tmp_path / "run")


def damaged(document: dict[str, Any]) -> list[bytes]:
    """The document with each of its keys missing, null, of another type, or beyond numbers."""
    found = []
    for key in document:
        found.append(json.dumps({k: v for k, v in document.items() if k != key}).encode())
        for value in (None, [[]], {"a": 1}, -1, 1.5, True):
            if type(value) is not type(document[key]) and value != document[key]:
                found.append(json.dumps({**document, key: value}).encode())
        found.append(json.dumps({**document, key: "x9x"}).replace('"x9x"', "1e999").encode())
    return found


def test_a_damaged_run_file_is_refused_by_name(run: RunFolder) -> None:
    whole = run.read()
    parts = damaged(whole)
    streams = damaged({"tasks": whole["stream"]["tasks"]})
    parts += [json.dumps({**whole, "stream": json.loads(s)}).encode() for s in streams[:6]]
    for data in [*RUBBISH, *parts]:
        run.folder.write("run.json", data)
        with pytest.raises(UserError, match=r"run\.json") as caught:
            RunFolder.open(run.uri)
        assert "\n" not in str(caught.value) and "run_dir" in str(caught.value), data[:80]


def test_a_damaged_event_is_left_out_and_the_run_can_still_be_read(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    journal = run.folder.child("journal")
    events = {event["event"]: event for event in run.journal.events()}
    done = events["stage-done"]
    name = f"{done['number']:06d}-stage-done.json"
    kept = {key: done[key] for key in ("number", "event", "time", "stage", "sha256")}
    left_out = 0
    for data in [*RUBBISH, *damaged(kept)]:
        journal.write(name, data)
        caplog.clear()
        fresh = RunFolder.open(run.uri)
        fresh.completed_stages()
        fresh.current_groups()
        fresh.forgotten()
        left_out += name in caplog.text
    assert left_out >= len(RUBBISH) + 4 * len(kept)


def test_a_damaged_manifest_is_named(run: RunFolder) -> None:
    models = run.folder.child("models")
    whole = models.read_json("001.json")
    groups = [
        json.dumps({**whole, "groups": [json.loads(g)]}).encode()
        for g in damaged(whole["groups"][0])
    ]
    parts = [
        part
        for part in damaged(whole)
        if json.loads(part.replace(b"1e999", b"-7")).get("parent") is not None
        or b"parent" not in part
    ]
    for data in [*RUBBISH, *parts, *groups]:
        models.write("001.json", data)
        with pytest.raises(IntegrityError, match=r"001\.json"):
            run.models.read(1)


def test_a_damaged_commit_costs_its_group_alone(run: RunFolder) -> None:
    first, *others = run.groups.list()
    for data in [*RUBBISH, b'{"group.safetensors": 1}', b'{"group.safetensors": null}']:
        run.folder.write(f"groups/{first.folder}/COMMIT", data)
        assert run.groups.list() == others
        with pytest.raises(IntegrityError, match="missing or not committed"):
            run.groups.verify(first)


def test_a_damaged_pointer_can_be_published_over(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run.folder.read_json("serving.json")
    for data in [*RUBBISH, *damaged(whole)]:
        run.folder.write("serving.json", data)
        with pytest.raises(IntegrityError, match="publish a manifest again"):
            read_pointer(run)
        assert newest_pointer(run).generation == whole["generation"]
        assert [note["generation"] for note in history(run)] == [whole["generation"]]
    new = next_pointer(run, 1)
    assert new.generation == whole["generation"] + 1, "never a number that answered before"
    write_pointer(run, new, "publish")
    assert read_pointer(run) == new and len(history(run)) == 2


def test_a_damaged_note_does_not_take_the_history_down(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    write_pointer(run, next_pointer(run, 1), "publish")
    first, second = history(run)
    name = f"serving/{first['generation']:06d}.json"
    for data in [*RUBBISH, *damaged(first)]:
        run.folder.write(name, data)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert history(run) == [second], data[:80]
        assert name.rpartition("/")[2] in caplog.text


def test_a_damaged_lock_names_nobody(tmp_path: Path) -> None:
    holder = json.loads(Holder(expires=5.0).dump())
    assert Holder.parse(json.dumps(holder).encode()) is not None
    optional = ("expires", "started", "machine")
    for data in [*RUBBISH, *damaged({k: v for k, v in holder.items() if k not in optional})]:
        assert Holder.parse(data) is None, data[:80]
    for value in ("1e999", "NaN", '"soon"', "[]"):
        text = json.dumps({**holder, "expires": "x9x"}).replace('"x9x"', value)
        assert Holder.parse(text.encode()) is None


def test_a_holder_whose_clock_is_ahead_blocks_only_while_it_renews(tmp_path: Path) -> None:
    folder, year = Folder(tmp_path), 365 * 86400.0
    far = Holder(host="far", pid=7, machine="other", expires=time.time() + year)
    folder.write("LOCK", far.dump())
    lease = Lease(folder, ttl_s=0.4, settle_s=0, skew_s=0)
    lease.acquire()
    lease.release()

    class Renewing(Lease):
        def _read(self) -> Holder | None:
            claim = dataclasses.replace(far, expires=time.time() + year)
            folder.write("LOCK", claim.dump())
            return super()._read()

    with pytest.raises(LockedError, match="far:7"):
        Renewing(folder, ttl_s=0.4, settle_s=0, skew_s=0).acquire()


def refused_backbone(folder: Path) -> str:
    with pytest.raises(UserError, match=r"^backbone.name: ") as caught:
        load_backbone(BackboneSettings(name=f"local-dir:{folder}"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_backbone_without_its_weights_is_no_random_one(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    save_local(folder)
    weights = folder / "open_clip_model.safetensors"
    others = folder / "basis.safetensors", folder / "notes.bin"
    data = weights.read_bytes()
    weights.unlink()
    for other in others:
        other.write_bytes(data)
    assert "holds no weights" in refused_backbone(folder)
    weights.write_bytes(b"")
    assert "is empty" in refused_backbone(folder)
    weights.write_bytes(data[: len(data) // 2])
    assert "cannot load" in refused_backbone(folder)
    weights.write_bytes(data)
    tensors = load_file(weights)
    name = "visual.proj"
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, weights)
    assert f"{name} is not finite" in refused_backbone(folder)
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, weights)
    assert "cannot load" in refused_backbone(folder)
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    assert "cannot load" in refused_backbone(folder)


def test_a_backbone_s_description_is_read_by_its_shape(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    save_local(folder)
    config = folder / "open_clip_config.json"
    whole = json.loads(config.read_text())
    for data in [*RUBBISH, *damaged(whole["model_cfg"])]:
        if data.startswith(b'{"') and b"embed_dim" in data and b"1e999" not in data:
            model = json.loads(data)
            if {"vision_cfg", "text_cfg"} - {k for k, v in model.items() if isinstance(v, dict)}:
                config.write_text(json.dumps({**whole, "model_cfg": model}))
                assert str(config) in refused_backbone(folder)
            continue
        config.write_bytes(data)
        assert str(config) in refused_backbone(folder)
    config.unlink()
    assert "is missing" in refused_backbone(folder)
