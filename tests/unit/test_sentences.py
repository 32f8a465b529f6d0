"""Descriptions of several sentences: how they are chosen, and how they fit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from archipelago.pipeline.identifiers.sentences import WORTH, fits, join, most_fitting, sentences_of

FLAG, MAP = [0.0, -20.0, 0.0, -20.0], [-20.0, 0.0, -20.0, 0.0]  # fits of four images, of two kinds
BOTH = [-5.0, -5.0, -5.0, -5.0]
KNOWN = {"flag": FLAG, "map": MAP, "picture": BOTH}


def fit(texts: list[str], known: dict[str, list[float]] = KNOWN) -> np.ndarray:
    return np.array([known[text] for text in texts]).T


def test_one_sentence_must_suit_all_images_and_several_may_share_them() -> None:
    said = [" flag ", "map", "flag", "picture", ""]
    assert most_fitting(said, fit) == "picture"
    assert most_fitting(said, fit, 3) == "picture; or flag; or map"
    assert most_fitting(["flag", "map"], fit, 3) == "flag; or map"
    assert most_fitting(["", ""], fit, 3) == "images"
    assert most_fitting([" map ", "map"], fit, 3) == "map"


def test_a_sentence_that_adds_nothing_is_left_out() -> None:
    for gain, chosen in ((WORTH - 0.01, "a"), (WORTH + 0.01, "a; or b")):
        b = np.log(4 * np.exp(2 * gain) - 1)  # (log(1/2) + log((1 + e^b) / 2)) / 2 = gain
        values = {"a": [0.0, 0.0], "b": [-50.0, b]}
        found = most_fitting(["b", "a"], partial(fit, known=values), 2)
        assert found == chosen


def test_a_description_fits_as_well_as_the_mean_of_its_sentences() -> None:
    asked: list[list[str]] = []

    def seen(texts: list[str]) -> np.ndarray:
        asked.append(texts)
        return fit(texts)

    found = fits(["flag; or map", "map", "flag"], seen)
    assert asked == [["flag", "map"]], "each sentence once"
    np.testing.assert_allclose(found[:, 1:], np.array([MAP, FLAG]).T)
    np.testing.assert_allclose(found[:, 0], np.log((1 + np.exp(-20.0)) / 2))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a flag; or a map", ["a flag", "a map"]),
        ("a flag, or a map", ["a flag, or a map"]),
        ("A flag. Or a map. Or more", ["A flag.", "a map.", "more"]),
        ("a flag. or a map", ["a flag. or a map"]),
        ("Or a map", ["Or a map"]),
        ('  "a\n map"; or  ; or ', ["a map"]),
        ("; or ", ["; or"]),
        ("", [""]),
    ],
)
def test_text_is_parted_where_it_names_alternatives(text: str, parts: list[str]) -> None:
    assert sentences_of(text) == parts


def test_a_model_cannot_smuggle_in_alternatives() -> None:
    assert most_fitting(["one; or two"], fit, 3) == "one, or two"


@pytest.mark.parametrize("parts", [["a"], ["a.", "b"], ["a", "b."], ["a.", "b.", "c"]])
def test_what_is_joined_can_be_parted(parts: list[str]) -> None:
    assert sentences_of(join(parts)) == parts
