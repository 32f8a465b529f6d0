"""Position bias: does a model prefer a letter, whatever stands there?

Orders are shuffled by image and seed, so that every description stands at every place alike. From
the probability of a place the mean probability of the option that stands there is taken off; what
is left on average is owed to the place: `deviation_p = mean_b(P[b, o(b, p)] - M[o(b, p)])` with
`M[o] = mean_b P[b, o]`.

Shapes: B images, T descriptions; places are those of the descriptions and, last, "none of these",
which always stands there and is therefore left out of the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from archipelago.pipeline.identifiers.description import letters_for


@dataclass(eq=False)
class PositionTally:
    """Sums over the images that were asked about; one object for each number of options.

    Attributes:
        images: that gave an answer.
        by_place: (T + 1,) sum of probabilities.
        by_option: (T + 1,) the same by option.
        stood: (T + 1, T + 1) how often each option (row) stood at each place (column).
    """

    images: int
    by_place: np.ndarray
    by_option: np.ndarray
    stood: np.ndarray

    @classmethod
    def empty(cls, options: int) -> PositionTally:
        """Nothing asked yet."""
        return cls(0, np.zeros(options), np.zeros(options), np.zeros((options, options)))

    def add(self, values: np.ndarray, order: np.ndarray) -> None:
        """Count some answers.

        Args:
            values: (B, T + 1) log probabilities by option; NaN rows were not answered.
            order: (B, T + 1), `[b, p]` is the option at place p.
        """
        answered = ~np.isnan(values).any(axis=1)
        shares, order = np.exp(values[answered].astype(np.float64)), order[answered]
        self.images += len(shares)
        self.by_option += shares.sum(axis=0)
        self.by_place += np.take_along_axis(shares, order, axis=1).sum(axis=0)
        for place, options in enumerate(order.T):
            self.stood[:, place] += np.bincount(options, minlength=len(self.by_option))

    def bias(self) -> dict[str, Any] | None:
        """What was found; None with fewer than two descriptions or without answers.

        Returns:
            `images`; `by_place`, mean probability of each place, percent, the last is "none";
            `deviation` of the places of descriptions, points; `largest` of these, without sign.
        """
        if not self.images or len(self.by_place) < 3:
            return None
        expected = self.stood.T @ (self.by_option / self.images)
        deviation = 100.0 * (self.by_place - expected)[:-1] / self.images
        return {
            "images": self.images,
            "by_place": [round(100.0 * float(v) / self.images, 2) for v in self.by_place],
            "deviation": [round(float(v), 2) for v in deviation],
            "largest": round(float(np.abs(deviation).max()), 2),
        }


def bias_in_words(bias: dict[str, Any]) -> str:
    """A bias in words.

    >>> bias = {"images": 64, "by_place": [40.0, 40, 20], "deviation": [3.0, -3], "largest": 3.0}
    >>> bias_in_words(bias)
    'mean probability by place A 40.0, B 40.0, none 20.0; position bias 3.0 points (64 images)'
    """
    names = [*letters_for(len(bias["deviation"])), "none"]
    shown = zip(names, bias["by_place"], strict=True)
    places = ", ".join(f"{name} {value:.1f}" for name, value in shown)
    return (
        f"mean probability by place {places}; position bias {bias['largest']:.1f} points"
        f" ({bias['images']} images)"
    )
