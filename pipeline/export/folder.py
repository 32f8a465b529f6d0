"""A folder to hand on, in Hugging Face's layout: model card, config, weights; it opens by itself.

README.md             the model card
config.json           what it is, for programs
run.json, basis.safetensors, models/, groups/     a minimal run: `LearnedModel.open(folder)`
onnx/                 functions of single domains, where asked for
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from archipelago.pipeline.config import redacted, stored_settings
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.export.card import model_card
from archipelago.pipeline.export.minimal import write_minimal
from archipelago.pipeline.export.swap import swap
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.learned.model import LearnedModel
from archipelago.pipeline.records.group import read_card
from archipelago.pipeline.settings import (
    ClusterSettings,
    ServingSettings,
    StreamSettings,
    TrackingSettings,
)
from archipelago.pipeline.store import GroupRef, Manifest, RunFolder, documents, names, sha256

CONFIG, CARD = "config.json", "README.md"
FORMAT = 1


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        manifest: the run's number of the model.
        tasks: its domains.
        size: bytes of all files.
        deviation: largest difference of a probability between ONNX and the model; None without.
    """

    folder: Path
    manifest: int
    tasks: tuple[str, ...]
    size: int
    deviation: float | None = None


def export_run(uri: str, target: Path, onnx: str | None = None) -> Exported:
    """Write the newest model of a run into a folder of its own.

    Args:
        uri: the run folder.
        target: empty or new, or an earlier export of the same run, which is replaced as a whole.
        onnx: also write the function of this domain as ONNX.

    Raises:
        UserError: nothing is learned, dense tasks, an unknown domain, or a folder with other files.
    """
    run, target = RunFolder.open(uri), target.resolve()
    manifest, cards = _newest(run)
    tasks = [part["name"] for card in cards for part in card["tasks"]]
    if onnx is not None and onnx not in tasks:
        raise UserError(f"onnx={onnx}: is not learned; learned are: {', '.join(tasks)}")
    key = _key(run)
    _check_target(target, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    built = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    try:
        document = public(run.read(), [[t["name"] for t in card["tasks"]] for card in cards])
        write_minimal(
            RunFolder(built),
            document,
            run.folder.read(names.BASIS),
            manifest.groups,
            lambda ref: _files(run, ref),
        )
        model = LearnedModel.open(built, device="cpu")  # what cannot be opened is not handed on
        deviation = None
        if onnx is not None:
            from archipelago.pipeline.export.onnx import write_onnx

            deviation = write_onnx(model, onnx, built / "onnx" / f"{quote(onnx, safe=' ')}.onnx")
        config = _config(key, manifest, document, cards)
        report = run.folder.read_json("report.json") if run.folder.exists("report.json") else {}
        (built / CARD).write_text(model_card(config, report, onnx), encoding="utf-8")
        config["files"] = _hashes(built)
        (built / CONFIG).write_bytes(documents.dumps(config))
        swap(built, target)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return Exported(target, manifest.version, tuple(tasks), size, deviation)


def public(document: Mapping[str, Any], stages: list[list[str]]) -> dict[str, Any]:
    """run.json without what concerns other machines, other domains or nobody else: no secrets, no
    paths of data, no addresses, no names of what is not in the model."""
    settings = stored_settings(document)
    tasks = [task for stage in stages for task in stage]
    identifier = settings.identifier
    if isinstance(identifier, MultimodalSettings):
        identifier = identifier.model_copy(update={"endpoint": None, "descriptions": {}})
    kept = settings.model_copy(
        update={
            "run_dir": None,
            "stream": StreamSettings(reader=settings.stream.reader, order=tasks),
            "backbone": settings.backbone.model_copy(update={"basis": None}),
            "identifier": identifier,
            "cluster": ClusterSettings(),
            "tracking": TrackingSettings(enabled=False),
            "serving": ServingSettings(),
        }
    )
    stream = {"tasks": tasks, "stages": stages}
    return {**document, "config": redacted(kept), "stream": stream, "tracking": {}}


def _newest(run: RunFolder) -> tuple[Manifest, list[dict[str, Any]]]:
    """The newest manifest and the cards of its groups."""
    shown, manifest = run.folder.shown(), run.models.latest()
    if manifest is None or not manifest.groups:
        raise UserError(f"run_dir={shown}: has learned nothing yet; there is no model to export")
    cards = [read_card(run, ref) for ref in manifest.groups]
    dense = [t["name"] for card in cards for t in card["tasks"] if t["kind"] is not None]
    if dense:
        raise UserError(
            f"run_dir={shown}: {', '.join(dense)} are dense tasks; only domains with classes are"
            " exported"
        )
    return manifest, cards


def _key(run: RunFolder) -> str:
    """Names a run wherever it lies: hash of the first thing that it noted."""
    events = run.journal.events()
    first = events[0] if events else run.read()
    return sha256(documents.dumps(first))[:32]


def _check_target(target: Path, key: str) -> None:
    """Raises UserError where something would be lost."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"to={target}: is a file; give a folder")
    present = {str(f.relative_to(target)) for f in target.rglob("*") if not f.is_dir()}
    if not present:
        return
    try:
        earlier = json.loads((target / CONFIG).read_bytes())
        same, known = earlier["run"] == key, {CONFIG, *earlier["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        same, known = False, set()
    if not same:
        raise UserError(
            f"to={target}: is not empty and no earlier export of this run; give another folder"
        )
    if strange := sorted(present - known):
        raise UserError(
            f"to={target}: holds {strange[0]}, which no export wrote; move it, or give another"
            " folder"
        )


def _files(run: RunFolder, ref: GroupRef) -> dict[str, bytes]:
    return {name: run.groups.read(ref, name) for name in run.groups.files(ref)}


def _config(
    key: str, manifest: Manifest, document: Mapping[str, Any], cards: list[dict[str, Any]]
) -> dict[str, Any]:
    settings = document["config"]
    return {
        "model_type": "archipelago",
        "library_name": "archipelago",
        "format": FORMAT,
        "run": key,
        "manifest": manifest.version,
        "manifest_sha256": manifest.sha256,
        "method": settings["method"]["name"],
        "identifier": settings["identifier"]["name"],
        "backbone": dict(document["backbone"]),
        "pretrained": settings["backbone"]["pretrained"],
        "domains": [
            {key: task[key] for key in ("name", "classes", "digests", "counts")}
            for card in cards
            for task in card["tasks"]
        ],
        "parameters": sum(card["parameters"]["group"] for card in cards),
    }


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256(file.read_bytes()) for file in files}
