"""What a multimodal model does for identifiers, whatever runs it: write and compare descriptions.

A driver is one file in `pipeline/identifiers/drivers/` that registers itself by name. A scorer may
run in this process, behind an HTTP endpoint or in a pool of replicas; the contract is the same.

Shapes: B images, T descriptions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.registry import Registry


class ScorerError(RuntimeError):
    """A model or its endpoint did not answer, after all retries."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Answers about some images.

    Attributes:
        values: (B, T + 1) log scores, the last column is "none of these"; a row of NaN was not
            answered. `likelihood`: log p(description | image) - log p(description), summed over
            its tokens, and 0 for none. `choice`, `generate`: log probabilities of the options.
        parse_failures: answers that were no option.
    """

    values: np.ndarray
    parse_failures: int = 0


class Scorer(Protocol):
    """A multimodal model, here or elsewhere.

    Attributes:
        model: its name with the digest of its weights, `mllm-tiny@0123456789ab`.
        parallel: calls of `score` that it can use at once.
        remote: whether it works while this process does something else.
    """

    model: str
    parallel: int
    remote: bool

    def describe(self, images: np.ndarray, classes: Sequence[str], seed: int) -> str:
        """What kind of pictures these are: a sentence, or a few that `sentences.join` joins.

        Args:
            images: (S, H, W, 3) uint8, some training images of one task.
            classes: its class names; data, never instructions.
            seed: of whatever chance is in it.

        Raises:
            ScorerError: no answer after all retries.
        """
        ...

    def score(
        self, images: np.ndarray, descriptions: Sequence[str], scoring: str, seed: int
    ) -> Scores:
        """How well each description fits each image; every image on its own.

        Args:
            images: (B, H, W, 3) uint8.
            descriptions: T texts.
            scoring: `likelihood`, `choice` or `generate`.
            seed: of the order in which options are shown.

        Raises:
            UserError: the model cannot score in this way.
        """
        ...


Factory = Callable[[MultimodalSettings, int], Scorer]
drivers: Registry[Factory] = Registry(
    "archipelago.pipeline.identifiers.drivers", "identifier.driver"
)
register_driver = drivers.register


def check_driver(settings: MultimodalSettings) -> None:
    """Refuse what can never work, before anything starts.

    Raises:
        UserError: unknown driver, or settings that it lacks.
    """
    drivers.get(settings.driver)
    local = settings.driver in ("transformers", "vllm")
    if local and settings.model.startswith(("/", ".", "~")) and not Path(settings.model).is_dir():
        raise UserError(
            f"identifier.model={settings.model}: there is no such directory; give mllm-tiny, a"
            " directory or the id of an image-text-to-text model on the hub"
        )
    if settings.driver == "vllm":
        _check_vllm(settings)
    if settings.driver == "openai" and not settings.endpoint:
        raise UserError(
            "identifier.endpoint: must be given for identifier.driver=openai, as"
            " identifier.endpoint=http://host:8000/v1"
        )
    if settings.driver == "openai" and settings.scoring == "likelihood":
        raise UserError(
            "identifier.scoring=likelihood: an endpoint does not give the likelihood of a text;"
            " use choice (needs logprobs) or generate"
        )


def _check_vllm(settings: MultimodalSettings) -> None:
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "identifier.driver=vllm: needs the package `vllm`, the extra `mllm` of"
            " archipelago: pip install '.[mllm]' in its folder"
        )
    if settings.device == "cpu":
        raise UserError(
            "identifier.device=cpu: vllm is for GPUs; use identifier.driver=transformers"
        )
    if settings.attention != "auto":
        raise UserError(
            f"identifier.attention={settings.attention}: vllm chooses itself; leave it at auto"
        )


def build_scorer(settings: MultimodalSettings, threads: int = 0) -> Scorer:
    """The driver that the settings name, in this process.

    Args:
        settings: driver, model and how to run it.
        threads: of torch; 0 = leave as it is.

    Raises:
        UserError: unknown driver, or a model that cannot be loaded.
    """
    check_driver(settings)
    return drivers.get(settings.driver)(settings, threads)


def one_hot(found: Sequence[int | None], options: int, doubt: float = 0.05) -> np.ndarray:
    """Log scores (B, options) of plain answers; None becomes a row of NaN.

    An answer without probabilities is believed up to `doubt`; calibration does the rest.
    """
    values = np.full((len(found), options), np.log(doubt / max(1, options - 1)), np.float32)
    for row, option in enumerate(found):
        if option is None:
            values[row] = np.nan
        else:
            values[row, option] = np.log(1.0 - doubt)
    return values
