"""Tiny things for tests: images, domains on disk, settings."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from archipelago.pipeline.config import load
from archipelago.pipeline.settings import Settings


def png(colour: tuple[int, int, int], size: int = 8, noise: int = 20, seed: int = 0) -> bytes:
    """A PNG file of one colour with a little noise, `size` x `size`."""
    rng = np.random.default_rng((seed, *colour))
    pixels = np.array(colour) + rng.integers(-noise, noise + 1, (size, size, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def parquet_domain(
    root: Path, name: str, classes: int = 3, train: int = 12, test: int = 6, size: int = 8
) -> Path:
    """A learnable domain for `stream=parquet`: a colour per class; `train`, `test` per class."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(name.encode()))
    colours = [tuple(int(v) for v in colour) for colour in rng.integers(0, 256, (classes, 3))]
    names = [f"{name} {index}" for index in range(classes)]
    for split, count in (("train", train), ("test", test)):
        rows = [(png(colours[c], size, seed=i), c) for i in range(count) for c in range(classes)]
        image = [{"bytes": data, "path": f"{split}-{i}.png"} for i, (data, _) in enumerate(rows)]
        table = pa.table({"image": image, "label": [label for _, label in rows]})
        pq.write_table(table, folder / f"{split}.parquet")
    about = {
        "name": name,
        "classes": names,
        "templates": ["a photo of a {}."],
        "splits": {"train": train * classes, "test": test * classes},
        "image_size": size,
        "source": "generated",
        "licence": "CC0",
    }
    (folder / "domain.json").write_text(json.dumps(about))
    return folder


TINY = (
    "training.steps=4",
    "training.batch_size=8",
    "training.warmup=1",
    "training.views=1",
    "training.validate_every=2",
    "training.checkpoint_every=2",
    "experts.count=2",
    "experts.rank=2",
    "evaluation.bootstrap=20",
    "tracking=off",
)
"""Overrides of a run that takes seconds."""


def tiny_settings(root: Path, run_dir: Path, *overrides: str) -> Settings:
    """Settings of a run of seconds over the domains below `root`; `overrides` come last."""
    places = ["stream=parquet", f"stream.root={root}", f"run_dir={run_dir}"]
    return load([*places, *TINY, *overrides])
