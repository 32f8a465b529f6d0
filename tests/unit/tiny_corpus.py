"""A corpus of a few rendered pictures a file, and a pretraining of seconds."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from archipelago.pipeline.pretraining import pictures
from archipelago.pipeline.pretraining.settings import (
    LessonSettings,
    ModelSettings,
    PictureSettings,
    PretrainSettings,
)
from archipelago.pipeline.settings import WorkerSettings


def tiny_pretraining(corpus: Path, out: Path, workers: int = 0) -> PretrainSettings:
    """Settings of a training of four steps; writes the corpus."""
    corpus.mkdir(parents=True, exist_ok=True)
    for name in pictures.FILES:
        rows = []
        for picture in pictures.rendered("surface", 3, seed=1):
            file = io.BytesIO()
            Image.fromarray(picture.pixels).save(file, "PNG")
            image = {"bytes": file.getvalue(), "path": "x.png"}
            rows.append({"image": image, "captions": ["a geometric shape: star.", "star"]})
        pq.write_table(pa.Table.from_pylist(rows), corpus / f"{name}.parquet")
    return PretrainSettings(
        out=str(out),
        device="cpu",
        precision="fp32",
        steps=4,
        batch_size=4,
        checkpoint_every=2,
        model=ModelSettings(tower_blocks=1, width=32, layers=1, heads=2, inner=48, vocabulary=700),
        pictures=PictureSettings(corpus=str(corpus), per_kind=3, rendered=3, held_out=1),
        lessons=LessonSettings(choice=0.5),
        workers=WorkerSettings(num_workers=workers, num_cpus=0.5, threads=1),
    )
