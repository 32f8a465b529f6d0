"""From pictures to what the model reads and must answer: questions, options, token ids.

A lesson is a pure function of (seed, step, place in the batch).

Shapes: B lessons, T tokens; 16 tokens a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from archipelago.pipeline.pretraining.build import ANSWER, BEGIN, END, USER
from archipelago.pipeline.pretraining.captions import kind_caption, name_caption, short_caption
from archipelago.pipeline.pretraining.pictures import generator
from archipelago.pipeline.pretraining.settings import LessonSettings

LETTERS = "ABCDEFGHI"
NONE_OF_THESE = "none of these"
KIND_PROMPT = "What kind of picture is this?"
NAME_PROMPT = "Describe the picture."
CHOICE_PROMPT = "Which description fits the picture?"
IGNORED = -100
NAMED = 0.18  # of the captions, those that name what is shown


@dataclass(frozen=True)
class Known:
    """What is known of one training picture besides its features."""

    kind: str
    names: tuple[str, ...]
    measured: dict[str, str]


@dataclass
class Batch:
    """Token ids, labels (`IGNORED` where nothing is asked) and mask (B, T); `rows` (n,) are the
    pictures of those of its lessons that have one, in order."""

    ids: Tensor
    labels: Tensor
    mask: Tensor
    rows: np.ndarray


def question(options: Sequence[str]) -> str:
    """The multiple choice over descriptions, lettered from A."""
    lines = [f"{LETTERS[i]}) {text}" for i, text in enumerate(options)]
    return "\n".join([CHOICE_PROMPT, *lines])


def choice(
    dice: np.random.Generator, known: Known, others: Sequence[Known], most: int
) -> tuple[str, str]:
    """A multiple choice about one picture and its answer: a letter.

    The others' kinds differ from the picture's. Mostly "none of these" is among the options, at any
    place, and sometimes it is the right one.
    """
    wrong = list({o.kind: o for o in others if o.kind != known.kind}.values())
    # Mostly few options: a small model has to grasp first what is asked.
    count = int(dice.integers(2, (most if dice.random() < 0.3 else min(4, most)) + 1))
    none = bool(dice.random() < 0.6)
    missing = none and bool(dice.random() < 0.25)
    say = kind_caption if dice.random() < 0.25 else short_caption
    room = count - none - (not missing)
    options = [say(dice, o.kind, o.measured) for o in wrong[:room]]
    options += [NONE_OF_THESE] if none else []
    options += [] if missing else [say(dice, known.kind, known.measured)]
    order = dice.permutation(len(options))
    right = options.index(NONE_OF_THESE) if missing else len(options) - 1
    place = int(np.flatnonzero(order == right)[0])
    return question([options[i] for i in order]), LETTERS[place]


def caption(dice: np.random.Generator, known: Known) -> tuple[str, str]:
    """A question about the picture as a whole, and a description."""
    if dice.random() < NAMED:
        return NAME_PROMPT, name_caption(dice, known.kind, known.names, known.measured)
    return KIND_PROMPT, kind_caption(dice, known.kind, known.measured)


class Lessons:
    """Draws batches; batches are of one sort, captions or choices, so that little is padded."""

    def __init__(
        self,
        known: Sequence[Known],
        tokenizer: PreTrainedTokenizerFast,
        prefix: str,
        settings: LessonSettings,
        seed: int,
    ) -> None:
        self.known, self.tokenizer, self.settings, self.seed = known, tokenizer, settings, seed
        self.prefix = prefix
        kinds = sorted({k.kind for k in known})
        self.by_kind = [np.flatnonzero([k.kind == kind for k in known]) for kind in kinds]
        # Between equal shares a kind and equal shares a picture.
        share = np.sqrt([len(rows) for rows in self.by_kind])
        self.share = share / share.sum()

    def batch(self, step: int, rank: int, size: int) -> Batch:
        """The batch of one step on one rank."""
        sort = generator(self.seed, "sort", step).random()
        dice = generator(self.seed, "lessons", step, rank)
        if sort < self.settings.choice:
            size = max(1, size // 2)  # choices are twice as long
        rows = [self._row(dice) for _ in range(size)]
        if sort < self.settings.choice:
            texts = [self._choice(dice, row) for row in rows]
            return self.pack(texts, np.array(rows))
        seen = [dice.random() >= self.settings.blind for _ in rows]
        texts = [
            self._text(*caption(dice, self.known[row]), sees)
            for row, sees in zip(rows, seen, strict=True)
        ]
        return self.pack(texts, np.array([r for r, s in zip(rows, seen, strict=True) if s], int))

    def _row(self, dice: np.random.Generator) -> int:
        rows = self.by_kind[int(dice.choice(len(self.by_kind), p=self.share))]
        return int(rows[dice.integers(len(rows))])

    def _choice(self, dice: np.random.Generator, row: int) -> tuple[str, str]:
        others = [self.known[self._row(dice)] for _ in range(2 * self.settings.options)]
        asked, answer = choice(dice, self.known[row], others, self.settings.options)
        return self._text(asked, answer, True)

    def _text(self, asked: str, answer: str, sees: bool) -> tuple[str, str]:
        return f"{BEGIN}{USER}{self.prefix if sees else ''}{asked}{ANSWER}", f"{answer}{END}"

    def pack(self, texts: Sequence[tuple[str, str]], rows: np.ndarray) -> Batch:
        """Tokens of (question, answer) pairs, padded on the right; only answers are labelled."""
        encode = self.tokenizer
        asked = encode([a for a, _ in texts], add_special_tokens=False)["input_ids"]
        answers = encode([b for _, b in texts], add_special_tokens=False)["input_ids"]
        longest = max(len(a) + len(b) for a, b in zip(asked, answers, strict=True))
        ids = torch.full((len(texts), longest), encode.pad_token_id)
        labels = torch.full((len(texts), longest), IGNORED)
        mask = torch.zeros((len(texts), longest), dtype=torch.long)
        for i, (a, b) in enumerate(zip(asked, answers, strict=True)):
            end = len(a) + len(b)
            ids[i, :end] = torch.tensor(a + b)
            labels[i, len(a) : end] = torch.tensor(b)
            mask[i, :end] = 1
        return Batch(ids, labels, mask, rows)
