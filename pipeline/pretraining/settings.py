"""Typed settings of `jobs/pretrain.py`; values and their trade-offs are in `conf/pretrain.yaml`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import WorkerSettings
from archipelago.pipeline.strict import Strict

FILE = Path(__file__).resolve().parents[2] / "conf" / "pretrain.yaml"


class ModelSettings(Strict):
    """Shape of the vision-language model."""

    tower: str = "clip-tiny"
    tower_blocks: PositiveInt = 6
    width: PositiveInt = 192
    layers: PositiveInt = 4
    heads: PositiveInt = 3
    inner: PositiveInt = 512
    vocabulary: PositiveInt = 2000


class PictureSettings(Strict):
    """What the model looks at while it learns."""

    corpus: str | None = None
    per_kind: PositiveInt = 1100
    rendered: PositiveInt = 650
    worn: float = Field(0.4, ge=0.0, le=1.0)
    held_out: PositiveInt = 40


class LessonSettings(Strict):
    """Which questions are asked about a picture, as shares of all."""

    blind: float = Field(0.12, ge=0.0, lt=1.0)
    choice: float = Field(0.2, ge=0.0, lt=1.0)
    options: PositiveInt = 9


class ExamSettings(Strict):
    """How many images of a domain an examination looks at."""

    few: PositiveInt = 24
    tests: PositiveInt = 120


class PretrainSettings(Strict):
    """Everything that one training of a vision-language model needs."""

    out: str | None = None
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    steps: PositiveInt = 2400
    batch_size: PositiveInt = 48
    learning_rate: float = Field(2e-3, gt=0.0)
    weight_decay: NonNegativeFloat = 0.02
    warmup: NonNegativeInt = 100
    clip_norm: NonNegativeFloat = 1.0
    average: float = Field(0.995, ge=0.0, lt=1.0)
    report_every: PositiveInt = 50
    checkpoint_every: PositiveInt = 200
    model: ModelSettings = ModelSettings()
    pictures: PictureSettings = PictureSettings()
    lessons: LessonSettings = LessonSettings()
    exam: ExamSettings = ExamSettings()
    workers: WorkerSettings = WorkerSettings(num_workers=0, num_cpus=1.0)

    @model_validator(mode="after")
    def _fits(self) -> PretrainSettings:
        if self.model.width % (2 * self.model.heads):
            raise ValueError("model.width must be an even multiple of model.heads")
        if self.workers.num_workers and self.batch_size % self.workers.num_workers:
            raise ValueError("batch_size must divide by workers.num_workers")
        return self


def load_settings(overrides: Sequence[str] = ()) -> PretrainSettings:
    """`conf/pretrain.yaml`, then overrides such as `steps=100`.

    Raises:
        UserError: one line that names the key.
    """
    values = OmegaConf.load(FILE)
    known = _keys(OmegaConf.to_container(values))
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals:
            raise UserError(f"{text!r}: not understood; write key=value")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise UserError(f"{key}: unknown key{f'; did you mean {near[0]}?' if near else ''}")
        try:
            values = OmegaConf.merge(values, OmegaConf.from_dotlist([text]))
        except OmegaConfBaseException as error:
            raise UserError(f"{text}: {str(error).splitlines()[0]}") from None
    try:
        return PretrainSettings.model_validate(OmegaConf.to_container(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise UserError(f"{where}: {first['msg'].lower()}, not {first['input']!r}") from None


def _keys(values: Any, prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in values.items():
        found += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found
