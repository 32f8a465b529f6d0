"""The question with letters, as every driver asks it: options in an order of their own per image.

Shapes: B images, T descriptions; options are the descriptions and, last, "none of these".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from archipelago.pipeline.identifiers.description import (
    ANSWER,
    NONE_OF_THESE,
    choice_prompt,
    letters_for,
    orders,
    parse_letter,
)
from archipelago.pipeline.identifiers.scorer import Scores, one_hot


@dataclass(frozen=True, eq=False)
class Choices:
    """One question about each image.

    Attributes:
        letters: one for each place.
        order: (B, T + 1), `[b, p]` is the option that stands at place p.
        prompts: B texts.
    """

    letters: str
    order: np.ndarray
    prompts: list[str]

    @classmethod
    def of(
        cls, images: np.ndarray, descriptions: Sequence[str], seed: int, how: str = ANSWER
    ) -> Choices:
        """Ask which description fits.

        Args:
            images: (B, H, W, 3) uint8.
            descriptions: T texts.
            seed: of the orders.
            how: what to say about the form of the answer.
        """
        options = [*descriptions, NONE_OF_THESE]
        letters, order = letters_for(len(options)), orders(images, len(options), seed)
        prompts = [choice_prompt([options[o] for o in row], letters, how) for row in order]
        return cls(letters, order, prompts)

    def by_option(self, places: np.ndarray) -> np.ndarray:
        """Log scores (B, T + 1) by option, from those by place."""
        values = np.full(self.order.shape, np.nan, np.float32)
        np.put_along_axis(values, self.order, places.astype(np.float32), axis=1)
        return values

    def read(self, answers: Sequence[str]) -> Scores:
        """Scores of answers in text; what is no letter is counted."""
        found = [parse_letter(text, self.letters) for text in answers]
        places = one_hot(found, len(self.letters))
        return Scores(self.by_option(places), sum(place is None for place in found))
