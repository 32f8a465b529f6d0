"""The answer to `/v1/classify`: how one is written, and how OpenAPI describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from archipelago.pipeline.learned.asking import Answer


class LabelShare(BaseModel):
    """A class and its probability among the candidates."""

    label: str
    probability: float


class GroupWeight(BaseModel):
    """A group that took part in an answer."""

    task: str
    weight: float


class DomainShare(BaseModel):
    """A learned domain and how likely an image is from it, were it from one of them."""

    task: str
    probability: float


class ImageAnswer(BaseModel):
    """What is said of one image."""

    task: str | None = Field(description="the recognised or given domain; null = none of them")
    task_confidence: float = Field(description="probability of that choice")
    unseen: bool = Field(description="taken for an image of no learned domain")
    lambda_: float = Field(
        alias="lambda",
        description="share of the groups where frozen CLIP has a part in the answer, else 0",
    )
    groups: list[GroupWeight] = Field(description="groups at work")
    classes: list[LabelShare] = Field(description="likeliest first")
    domains: list[DomainShare] = Field(description="learned domains, likeliest first")
    unseen_probability: float | None = Field(
        description="of being from no learned domain, whatever was asked"
    )
    refused: bool = Field(
        description="the answer is withheld, since the image looks too new (serving.abstain)"
    )
    milliseconds: dict[str, float] = Field(description="of each part; total for the request")


class ClassifyAnswer(BaseModel):
    """Answers to all images of a request, in their order."""

    generation: int = Field(description="of the model that answered")
    results: list[ImageAnswer]


def result(answer: Answer, spent: Mapping[str, float]) -> dict[str, Any]:
    """An answer as JSON."""
    return {
        "task": answer.task,
        "task_confidence": answer.task_confidence,
        "unseen": answer.unseen,
        "lambda": answer.weight,
        "groups": [{"task": task, "weight": weight} for task, weight in answer.groups],
        "classes": [{"label": label, "probability": p} for label, p in answer.classes],
        "domains": [{"task": task, "probability": p} for task, p in answer.domains],
        "unseen_probability": answer.unseen_probability,
        "refused": answer.refused,
        "milliseconds": rounded(spent),
    }


def rounded(spent: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds as answers give them."""
    return {name: round(value, 3) for name, value in spent.items()}
