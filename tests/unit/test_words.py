"""A job's own words."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from archipelago.actors.words import Words, has_word, read_words
from archipelago.pipeline.errors import UserError


class Own(Words):
    task: str = Field(description="which domain")
    erase: bool = False
    top_k: int = Field(5, ge=1)
    only: list[str] | None = None
    where: str | None = None
    split: Literal["train", "test"] = "test"


def test_own_words_are_typed_and_others_passed_on() -> None:
    words = ["task=a=b", "training.steps=5", "erase=true", "top_k=3", "only=[x,y]", "where='~/q u'"]
    own, rest = read_words(words, Own)
    assert own == Own(task="a=b", erase=True, top_k=3, only=["x", "y"], where="~/q u")
    assert rest == ["training.steps=5"]
    assert has_word(rest, "training.steps") and not has_word(rest, "training")


@pytest.mark.parametrize("text", ["5", "true", "null", "[a", "2026-01-01"])
def test_text_is_taken_as_it_stands(text: str) -> None:
    assert read_words([f"task={text}"], Own)[0].task == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["erase=true"], r"task: must be given, task=\.\.\. \(which domain\)"),
        (["task=a", "erase=yes-please"], "erase=yes-please: expected true or false"),
        (["task=a", "top_k=0"], "top_k=0: expected at least 1"),
        (["task=a", "top_k=1.5"], "top_k=1.5: expected a whole number"),
        (["task=a", "only=x"], r"only=x: expected a list: \[a,b\]"),
        (["task=a", "only=[x"], "only=.x: not understood"),
        (["task=a", "split=val"], "split=val: expected 'train' or 'test'"),
        (["task=a", "tsak=b"], "tsak: unknown here; did you mean task"),
        (["task=a", "loose"], "'loose': not understood; write key=value"),
    ],
)
def test_mistakes_are_refused_by_name(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_words(words, Own, settings=False)
