"""Descriptions of several sentences: a task that is many kinds of pictures needs more than one.

A description may name alternatives, "a flag; or a map". It fits an image as well as its sentences
do on average, `log mean exp`: one that fits is enough, and naming more is no advantage by itself.

Shapes: B images, T descriptions, S sentences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from archipelago.pipeline.identifiers.description import OR, clean

PARTING = re.compile(r";\s+or(?:\s+|$)|(?<=\.)\s+Or\s+")
WORTH = 0.6  # nats an image that a further sentence must add to the mean fit
Fit = Callable[[list[str]], np.ndarray]


def sentences_of(description: str) -> list[str]:
    """The alternatives of a description, at least one.

    >>> sentences_of("a flag; or a map")
    ['a flag', 'a map']
    """
    text = clean(description)
    return [part for part in PARTING.split(text) if part] or [text]


def join(sentences: Sequence[str]) -> str:
    """One description of several sentences; `sentences_of` takes it apart again.

    >>> join(["A flag.", "a map", "a sign"])
    'A flag. Or a map; or a sign'
    """
    text = sentences[0]
    for sentence in sentences[1:]:
        text += (" Or " if text.endswith(".") else OR) + sentence
    return text


def fits(descriptions: Sequence[str], fit: Fit) -> np.ndarray:
    """How well each description fits each image, (B, T).

    Args:
        descriptions: T texts.
        fit: log scores of single sentences, (B, S); each sentence is asked about once.
    """
    parts = [sentences_of(text) for text in descriptions]
    order = {text: at for at, text in enumerate(dict.fromkeys(t for p in parts for t in p))}
    found = fit(list(order))
    return np.stack([_log_mean(found[:, [order[t] for t in p]]) for p in parts], axis=1)


def most_fitting(answers: Sequence[str], fit: Fit, most: int = 1) -> str:
    """Of several sentences the few that together suit all images best.

    One after the other is chosen that raises the mean fit most, until none does by much.

    Args:
        answers: as the model gave them, one an image.
        fit: as for `fits`.
        most: how many sentences are taken at most.
    """
    cleaned = (", or ".join(sentences_of(answer)) for answer in answers)
    candidates = [text for text in dict.fromkeys(cleaned) if text]
    if len(candidates) < 2:
        return candidates[0] if candidates else "images"
    values = fit(candidates)
    chosen: list[int] = []
    best = -np.inf
    while len(chosen) < min(most, len(candidates)):
        means = np.full(len(candidates), -np.inf)
        for at in set(range(len(candidates))) - set(chosen):
            means[at] = _log_mean(values[:, [*chosen, at]]).mean()
        if means.max() < best + WORTH:
            break
        best = float(means.max())
        chosen.append(int(means.argmax()))
    return join([candidates[at] for at in chosen])


def _log_mean(values: np.ndarray) -> np.ndarray:
    """`log mean exp` over the last axis."""
    return np.logaddexp.reduce(values, axis=-1) - np.log(values.shape[-1])
