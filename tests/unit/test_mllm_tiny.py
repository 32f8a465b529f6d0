"""The shipped mllm-tiny: loads anywhere, offline and whole; looks at the picture; is small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from archipelago.pipeline.model.backbone import load_backbone
from archipelago.pipeline.pretraining.build import load
from archipelago.pipeline.pretraining.exam import Examiner
from archipelago.pipeline.pretraining.lessons import KIND_PROMPT, LETTERS, question
from archipelago.pipeline.pretraining.renderers import RENDERERS
from archipelago.pipeline.settings import BackboneSettings

FOLDER = Path(__file__).resolve().parents[2] / "pipeline/identifiers/weights/mllm-tiny"
MIB = 2**20


@pytest.fixture(scope="module")
def examiner() -> Examiner:
    return Examiner(*load(FOLDER))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    dice = np.random.default_rng(3)
    return np.stack([RENDERERS[name](dice) for name in ("strokes", "surface", "banner")])


def test_it_is_small_and_holds_nothing_that_runs() -> None:
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 30 * MIB
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".jinja", ".md"}
    card = (FOLDER / "README.md").read_text()
    assert all(word in card for word in ("jobs/pretrain.py", "Licence", "Data", "steps"))


def test_it_loads_strictly_by_the_auto_classes() -> None:
    from transformers import AutoModelForImageTextToText

    model, missed = AutoModelForImageTextToText.from_pretrained(
        FOLDER, local_files_only=True, output_loading_info=True
    )
    assert not any(missed[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_its_tower_is_that_of_clip_tiny(examiner: Examiner, images: np.ndarray) -> None:
    backbone = load_backbone(BackboneSettings(name="clip-tiny", precision="fp32"))
    pixels = backbone.normalise(images)
    tower = examiner.model.model.vision_tower
    blocks = tower.config.num_hidden_layers
    with torch.no_grad():
        ours = backbone.image.run(backbone.image.embed(pixels), 0, blocks)
        theirs = tower(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(examiner.pixels(images), pixels, rtol=0, atol=1e-5)


def test_it_speaks_by_its_chat_template(examiner: Examiner, images: np.ndarray) -> None:
    chats = [[_turn(KIND_PROMPT, image)] for image in images]
    inputs = examiner.processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        found = examiner.model.generate(**inputs, max_new_tokens=40, do_sample=False)
    texts = examiner.tokenizer.batch_decode(
        found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert [t.strip() for t in texts] == examiner.say(images, most=40)
    assert all(len(text.split()) >= 4 for text in texts)
    assert len(set(texts)) == len(texts)


def _turn(text: str, image: np.ndarray) -> dict[str, Any]:
    shown = {"type": "image", "image": Image.fromarray(image)}
    return {"role": "user", "content": [shown, {"type": "text", "text": text}]}


def test_likelihoods_depend_on_the_image(examiner: Examiner, images: np.ndarray) -> None:
    texts = examiner.say(images)
    fits = examiner.fits(images, texts)
    assert np.isfinite(fits).all()
    assert fits.argmax(axis=1).tolist() == [0, 1, 2]  # its own words about each fit that one best
    assert (fits.diagonal() > 1.0).all()


def test_an_image_does_not_depend_on_its_batch(examiner: Examiner, images: np.ndarray) -> None:
    text = "a photo: people in an everyday scene."
    alone = np.concatenate([examiner.logs(examiner.look(i[None]), text) for i in images])
    np.testing.assert_allclose(examiner.logs(examiner.look(images), text), alone, atol=1e-3)


def test_letters_are_single_tokens(examiner: Examiner, images: np.ndarray) -> None:
    assert all(len(examiner.tokenizer(letter)["input_ids"]) == 1 for letter in LETTERS)
    logs = examiner.letters(images[0], question(["handwriting", "a photo", "none of these"]), 3)
    assert np.isclose(np.exp(logs).sum(), 1.0)
