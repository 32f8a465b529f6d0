"""A saved CLIP in a folder, looked at before it is loaded: open_clip takes a folder without weights
for a model to be trained, and would give a random one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archipelago.pipeline.errors import UserError

CONFIG = "open_clip_config.json"
TOWERS = {
    "vision_cfg": ("image_size", "layers", "width", "patch_size"),
    "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers"),
}
WEIGHTS = (".safetensors", ".bin", ".pth")
NAMES = ("model", "clip", "weights", "checkpoint")  # a part of what files of weights are called
BASIS = "basis"  # ours, beside them


def check_folder(folder: Path) -> None:
    """Is this a saved model? Files of weights are not opened.

    Raises:
        UserError: in one line that names the file.
    """
    config = folder / CONFIG
    _check_config(config, _read(config))
    found = [file for file in folder.iterdir() if _is_weights(file)]
    if not found:
        raise UserError(
            f"backbone.name: {folder} holds no weights; put open_clip_model.safetensors (or"
            " open_clip_pytorch_model.bin) there"
        )
    for file in found:
        if not file.is_file() or not file.stat().st_size:
            raise UserError(f"backbone.name: {file} is empty or no file; restore it")


def _is_weights(file: Path) -> bool:
    return file.suffix in WEIGHTS and any(name in file.stem.lower() for name in NAMES)


def _read(config: Path) -> dict[str, Any]:
    try:
        value = json.loads(config.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"backbone.name: {config} is missing; save the model with open_clip.push_to_hf_hub or"
            " save_for_hf"
        ) from None
    except (OSError, ValueError, RecursionError):
        raise UserError(f"backbone.name: {config} is not JSON; restore it") from None
    if not isinstance(value, dict):
        raise UserError(f"backbone.name: {config} is no JSON object; restore it")
    return value


def _check_config(config: Path, value: dict[str, Any]) -> None:
    model = value.get("model_cfg")
    wrong = "model_cfg" if not isinstance(model, Mapping) else _wrong(model)
    if wrong:
        raise UserError(
            f"backbone.name: {config}: '{wrong}' is missing or of another kind; restore it"
        )
    images = value.get("preprocess_cfg", {})
    if not isinstance(images, Mapping):
        raise UserError(f"backbone.name: {config}: 'preprocess_cfg' is no section; restore it")


def _wrong(model: Mapping[str, Any]) -> str | None:
    """The first key of a model's description that is not what open_clip counts on."""
    if not _is_count(model.get("embed_dim")):
        return "embed_dim"
    for tower, keys in TOWERS.items():
        section = model.get(tower)
        if not isinstance(section, Mapping):
            return tower
        for key in keys:
            if key in section and not _is_count(section[key]) and not _is_other(key, section[key]):
                return f"{tower}.{key}"
    return None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**20


def _is_other(key: str, value: object) -> bool:
    """A pair of sizes, or the four depths of a ResNet, which is refused later by its name."""
    if key not in ("image_size", "layers", "patch_size"):
        return False
    return isinstance(value, list | tuple) and all(_is_count(item) for item in value)
