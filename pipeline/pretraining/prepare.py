"""What is computed once before training: pictures, what is measured in them, the tower's features.

The image tower is frozen, so each picture passes it once; training reads its patches from a
memory-mapped file.

Shapes: N pictures, P patches, D width of the tower.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archipelago.pipeline.model.kernels import multiplies_bf16
from archipelago.pipeline.pretraining.build import (
    build_model,
    build_processor,
    save,
    train_tokenizer,
)
from archipelago.pipeline.pretraining.build import load as load_model
from archipelago.pipeline.pretraining.captions import kind_caption, name_caption, short_caption
from archipelago.pipeline.pretraining.lessons import (
    CHOICE_PROMPT,
    KIND_PROMPT,
    NAME_PROMPT,
    NONE_OF_THESE,
    Known,
)
from archipelago.pipeline.pretraining.measures import measure
from archipelago.pipeline.pretraining.pictures import generator, sources
from archipelago.pipeline.pretraining.settings import PretrainSettings

log = logging.getLogger(__name__)
BATCH = 128
FEATURES, KNOWN, START = "features.f16", "known.json", "start"
# OpenAI CLIP's normalisation, which the packaged tower was trained with.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Prepared:
    """What training reads.

    Attributes:
        features: (N, P, D) fp16, memory-mapped.
        known: what is known of the N pictures.
        held: rows that are never trained on.
    """

    features: np.ndarray
    known: list[Known]
    held: list[int]

    @property
    def train(self) -> list[int]:
        """Rows to train on."""
        held = set(self.held)
        return [row for row in range(len(self.known)) if row not in held]


def prepare(settings: PretrainSettings, folder: Path, device: str = "cpu") -> None:
    """Write the features, the tokenizer and the untrained model; nothing to do if they are there.

    Raises:
        UserError: there is no corpus.
    """
    key = settings.model_dump_json(include={"seed", "model", "pictures"})
    if (folder / KNOWN).is_file() and json.loads((folder / KNOWN).read_text())["key"] == key:
        return
    found = list(sources(settings.pictures, settings.seed))
    folder.mkdir(parents=True, exist_ok=True)
    known: list[Known] = []
    held: list[int] = []
    images: list[np.ndarray] = []
    for name, make in found:
        pictures = make(None)
        held += range(len(known), len(known) + min(settings.pictures.held_out, len(pictures)))
        known += [Known(p.kind, p.names, measure(p.pixels)) for p in pictures]
        images += [p.pixels for p in pictures]
        log.info("%s: %d pictures", name, len(pictures))
    tokenizer = train_tokenizer(_texts(settings, known), settings.model.vocabulary)
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, tokenizer)
    save(folder / START, model, build_processor(tokenizer, model))
    model.to(device)
    with (folder / FEATURES).open("wb") as file:
        for start in range(0, len(images), BATCH):
            file.write(encode(model, np.stack(images[start : start + BATCH])).tobytes())
    text = json.dumps({"key": key, "known": [asdict(k) for k in known], "held": held})
    (folder / KNOWN).write_text(text)


def load_prepared(folder: Path) -> tuple[Prepared, Any, Any]:
    """What `prepare` wrote: data, untrained model, processor."""
    facts = json.loads((folder / KNOWN).read_text())
    known = [Known(k["kind"], tuple(k["names"]), k["measured"]) for k in facts["known"]]
    model, processor = load_model(folder / START)
    model.model.vision_tower.requires_grad_(False)
    vision = model.config.vision_config
    shape = (len(known), (vision.image_size // vision.patch_size) ** 2, vision.hidden_size)
    features = np.memmap(folder / FEATURES, np.float16, "r", shape=shape)
    return Prepared(features, known, facts["held"]), model, processor


@torch.no_grad()
def encode(model: Any, images: np.ndarray) -> np.ndarray:
    """Patch features of images uint8 (B, S, S, 3) as the projector reads them, fp16 (B, P, D)."""
    pixels = torch.from_numpy((images.astype(np.float32) / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    tower = model.model.vision_tower
    half = multiplies_bf16(tower.device.type)
    with torch.autocast(tower.device.type, torch.bfloat16, enabled=half):
        found = tower(pixel_values=pixels.to(tower.device).contiguous()).last_hidden_state
    return found[:, 1:].to(torch.float16).cpu().numpy()


def _texts(settings: PretrainSettings, known: Sequence[Known]) -> list[str]:
    """A sample of everything that will be said, for the tokenizer."""
    dice = generator(settings.seed, "texts")
    texts = [
        KIND_PROMPT,
        NAME_PROMPT,
        CHOICE_PROMPT,
        NONE_OF_THESE,
        "A) B) C) D) E) F) G) H) I)",
    ] * 50
    for k in known:
        texts.append(kind_caption(dice, k.kind, k.measured))
        texts.append(name_caption(dice, k.kind, k.names, k.measured))
        texts.append(short_caption(dice, k.kind, k.measured))
    return texts
