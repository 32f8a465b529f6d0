"""Settings of identifiers: what all of them have, and what those with a multimodal model have.

Which of these types is an identifier's own, its class says; here is how the section `identifier`
becomes one of them, by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, SerializeAsAny

from archipelago.pipeline.registry import Registry
from archipelago.pipeline.strict import Strict


class IdentifierSettings(Strict):
    """Who says which task an image belongs to: what the statistics take."""

    name: str
    evidence: Literal["both", "E", "J", "mean", "class_means"] = "both"
    novelty: Literal["both", "distance", "cosine"] = "both"
    depths: Literal["all", "trunk", "final"] = "all"
    mirror: bool = False
    shrinkage: float = Field(0.003, gt=0.0, lt=1.0)
    width: PositiveInt = 1024


class MultimodalSettings(IdentifierSettings):
    """The same, with a multimodal model that is asked about images."""

    driver: str = "transformers"
    model: str = "mllm-tiny"
    endpoint: str | None = None
    scoring: Literal["likelihood", "choice", "generate"] = "likelihood"
    share: float = Field(0.3, ge=0.0, le=1.0)
    samples: PositiveInt = 24
    sentences: PositiveInt = 3
    descriptions: dict[str, str] = Field(default_factory=dict)
    calibration_images: PositiveInt = 64
    batch_size: PositiveInt = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    concurrency: PositiveInt = 8
    timeout_s: float = Field(60.0, gt=0.0)
    retries: NonNegativeInt = 4
    options: dict[str, Any] = Field(default_factory=dict)


kinds: Registry[type[IdentifierSettings]] = Registry(
    "archipelago.pipeline.identifiers", "identifier.name"
)
"""The settings of each identifier, by its name."""


def all_fields() -> dict[str, Any]:
    """Fields of the section, whichever identifier has them."""
    known = kinds.known().values()
    return {name: field for kind in known for name, field in kind.model_fields.items()}


def owners(key: str) -> list[str]:
    """The identifiers that have a key of the section."""
    return [name for name, kind in kinds.known().items() if key in kind.model_fields]


def for_identifier(settings: IdentifierSettings, name: str, **changes: Any) -> IdentifierSettings:
    """The section for another identifier: what both have is kept, the rest is as by default.

    Raises:
        UserError: unknown name.
    """
    kind = kinds.get(name)
    kept = {key: value for key, value in settings if key in kind.model_fields}
    return kind(**{**kept, "name": name, **changes})


def own_keys(config: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """Stored settings of a run without what belongs to other identifiers than its own.

    Runs of earlier versions stored the keys of all identifiers.

    Args:
        config: as in run.json.
        name: of the identifier whose keys are kept; None = the run's own.
    """
    section = config.get("identifier")
    if not isinstance(section, Mapping):
        return dict(config)
    kind = kinds.known().get(str(name or section.get("name")), MultimodalSettings)
    foreign = all_fields().keys() - kind.model_fields.keys()
    return {**config, "identifier": {k: v for k, v in section.items() if k not in foreign}}


def _typed(values: Any) -> Any:
    """The section as its identifier's own type."""
    if isinstance(values, Mapping) and isinstance(values.get("name"), str):
        return kinds.get(values["name"]).model_validate(values, strict=True)
    return values


AnyIdentifier = Annotated[SerializeAsAny[IdentifierSettings], BeforeValidator(_typed)]
