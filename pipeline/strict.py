"""What all settings have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of all settings: unknown keys and silent type conversions are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)
