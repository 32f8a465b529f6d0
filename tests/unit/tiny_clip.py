"""A CLIP of a few thousand random weights, expert groups with random weights, and settings."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from archipelago.pipeline.model.backbone import EMBEDDED, Backbone, from_open_clip
from archipelago.pipeline.model.experts import ExpertGroup
from archipelago.pipeline.settings import Settings

VOCABULARY, CONTEXT = 99, 12
IMAGE = {"image_size": 32, "layers": 4, "width": 48, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 4}


def words(texts: Sequence[str], context: int = CONTEXT) -> Tensor:
    """Ids (B, L): one a word, between a start and an end token, padded with 0."""
    out = torch.zeros(len(texts), context, dtype=torch.long)
    for row, text in enumerate(texts):
        ids = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 3) for word in text.split()]
        ids = [VOCABULARY - 2, *ids[: context - 2], VOCABULARY - 1]
        out[row, : len(ids)] = torch.tensor(ids)
    return out


def open_clip_model(
    kind: type[nn.Module] = open_clip.CLIP,
    image: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """A small model of open_clip's own classes with random weights, none of them zero."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = kind(32, IMAGE | (image or {}), TEXT | (text or {}), **options).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 and len(parameter) > 1:  # norms and biases are not trivial
                    parameter.add_(0.1 * torch.randn_like(parameter))
            if isinstance(model, open_clip.CLIP):
                model.positional_embedding.normal_(std=0.3)
                model.token_embedding.weight.normal_(std=0.5)
    return model


def tiny_backbone(**options: Any) -> Backbone:
    """A frozen tiny CLIP: image width 48, text width 32, 4 blocks each, 32 features."""
    return from_open_clip(open_clip_model(**options), words, "tiny")


def images(count: int, seed: int = 0, size: int = 32) -> Tensor:
    """uint8 images (count, size, size, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


def randomise(group: ExpertGroup, seed: int, size: float = 0.3) -> ExpertGroup:
    """Weights as if trained: none is zero, and routers prefer some experts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in group.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return group


def settings(**parts: Any) -> Settings:
    """Settings for the tiny CLIP without reading `conf/`; `parts` are sections of them."""
    values: dict[str, Any] = {
        "stream": {"reader": "parquet"},
        "backbone": {"name": "tiny"},
        "method": {"name": "trge"},
        "identifier": {"name": "prototype"},
        "experts": {"count": 3, "rank": 2},
        "training": {"steps": 4, "batch_size": 8, "warmup": 1, "views": 2, "validate_every": 2},
    }
    for name, part in parts.items():
        values[name] = values.get(name, {}) | part if isinstance(part, dict) else part
    return Settings.model_validate(values)


def save_local(folder: Path) -> nn.Module:
    """Save a random CLIP in the format of `local-dir:`, with the tokenizer of clip-tiny."""
    source = EMBEDDED["clip-tiny"]
    config = json.loads((source / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 32
    config["model_cfg"]["vision_cfg"] = IMAGE
    config["model_cfg"]["text_cfg"] |= {"width": 32, "heads": 2, "layers": 4}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    text = {k: v for k, v in config["model_cfg"]["text_cfg"].items() if k != "hf_tokenizer_name"}
    model = open_clip_model(text=text)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model
