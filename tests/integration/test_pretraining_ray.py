"""Pretraining on workers of Ray Train gives what it gives in process."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from archipelago.pipeline.pretraining.launch import pretrain
from tests.unit.tiny_corpus import tiny_pretraining


def test_ray_train_gives_the_same_model(tmp_path: Path, local_ray: str) -> None:
    here = pretrain(tiny_pretraining(tmp_path / "corpus", tmp_path / "here"))
    there = pretrain(tiny_pretraining(tmp_path / "corpus", tmp_path / "there", workers=1))
    one, two = (load_file(folder / "model.safetensors") for folder in (here, there))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=2e-3)
    states = sorted((tmp_path / "there" / "attempts").glob("*/*/state.json"))
    assert len(states) == 2  # written by Ray Train, in the form that a training in process reads
