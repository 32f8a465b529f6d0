"""Asks a multimodal model, remembers every score, and counts.

In `likelihood` mode the score of an (image, description) pair never changes: it is computed once,
kept in the run folder, and reused by every later stage and by a run that was interrupted. In the
other modes an answer belongs to the whole set of options.

Shapes: n images that are asked about, T descriptions.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers.description import (
    DESCRIBE_VERSION,
    SCORE_VERSION,
    Description,
    Sample,
    clean,
    orders,
)
from archipelago.pipeline.identifiers.position_bias import PositionTally
from archipelago.pipeline.identifiers.scorer import Scorer, Scores
from archipelago.pipeline.store import Folder
from archipelago.pipeline.store.tensors import dump, load

MOST_TRACES = 12  # calls of a stage that are recorded in full
PLACED = 64  # images of each set on which position bias is measured


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Images that may be looked at.

    Attributes:
        read: uint8 images (n, S, S, 3) by their positions.
        key: identity of the set they come from; None = unknown, nothing is remembered.
        rows: (B,) where each image stands in that set.
        count: images of the whole set.
        label: what to call them in traces.
    """

    read: Callable[[np.ndarray], np.ndarray]
    key: str | None = None
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    count: int = 0
    label: str = ""


@dataclass
class Usage:
    """What was asked of the model.

    Attributes:
        calls: decisions on an image for which the model's opinion was wanted.
        scorings: (image, description) pairs scored, or answers given to a set of options.
        fallbacks: decisions left to the signature because no usable answer came.
        parse_failures: answers that were no option.
        seconds: spent waiting for the model.
        images: that it really looked at.
        places: what position bias is computed from, by the number of options.
    """

    calls: int = 0
    scorings: int = 0
    fallbacks: int = 0
    parse_failures: int = 0
    seconds: float = 0.0
    images: int = 0
    places: dict[int, PositionTally] = field(default_factory=dict)

    def position_bias(self) -> dict[str, Any] | None:
        """That of the longest list of options; None for scores without places."""
        return self.places[max(self.places)].bias() if self.places else None

    def asdict(self) -> dict[str, Any]:
        """Plain data for a record."""
        plain = {name: value for name, value in vars(self).items() if name != "places"}
        return plain | {"position_bias": self.position_bias()}


class ScoreCache:
    """A scorer with a memory.

    Args:
        scorer: the model.
        settings: of the identifier.
        seed: of samples and orders.
        folder: where scores are kept, None = only in memory.
    """

    def __init__(
        self,
        scorer: Scorer,
        settings: MultimodalSettings,
        seed: int = 0,
        folder: Folder | None = None,
    ) -> None:
        self.scorer = scorer
        self.settings = settings
        self.seed = seed
        self.usage = Usage()
        self.traces: list[dict[str, Any]] = []
        self._folder = folder
        self._tables: dict[str, np.ndarray] = {}

    def take_usage(self) -> tuple[Usage, list[dict[str, Any]]]:
        """What was done since this was last asked, with a few calls in full."""
        usage, traces = self.usage, self.traces
        self.usage, self.traces = Usage(), []
        return usage, traces

    # -- describe ----------------------------------------------------------------------------

    def describe(self, sample: Sample) -> Description:
        """The task in words: as the settings say, else as the model does.

        Raises:
            ScorerError: the model does not answer.
        """
        by_hand = self.settings.descriptions.get(sample.task)
        if by_hand is not None:
            return Description(clean(by_hand), DESCRIBE_VERSION, "", sample.seed, (), "hand")
        clock = time.time()
        text = clean(self.scorer.describe(sample.images, sample.classes, sample.seed))
        self._trace("describe", sample.task, clock, list(sample.digests), text)
        model = self.scorer.model
        return Description(text, DESCRIBE_VERSION, model, sample.seed, sample.digests, "mllm")

    # -- score -------------------------------------------------------------------------------

    def scores(
        self, images: ImageSource, at: np.ndarray, descriptions: Sequence[str]
    ) -> np.ndarray:
        """Log scores (n, T + 1) of the images at some positions; NaN where no answer came."""
        self.usage.calls += len(at)
        if not len(at):
            return np.zeros((0, len(descriptions) + 1), np.float32)
        scoring = self.settings.scoring
        if scoring == "likelihood":
            columns = [[text] for text in dict.fromkeys(descriptions)]
        else:
            columns = [list(descriptions)]
        if images.key is None:
            values = self._ask(images, at, columns)
        else:
            self._complete(images, at, columns)
            values = [self._recall(images, texts)[images.rows[at]] for texts in columns]
        if scoring == "likelihood":
            where = {texts[0]: value[:, 0] for texts, value in zip(columns, values, strict=True)}
            found = np.stack([where[text] for text in descriptions], axis=1)
            found = np.concatenate([found, np.zeros((len(at), 1), np.float32)], axis=1)
        else:
            found = values[0]
            self._place(images.read(at[:PLACED]), found[:PLACED])
        self.usage.fallbacks += int(np.isnan(found).any(axis=1).sum())
        return found

    def prefetch(self, images: ImageSource, descriptions: Sequence[str]) -> None:
        """Compare all images with descriptions that will be asked about, each image read once.

        Nobody's opinion is wanted yet, so no calls are counted. Only in `likelihood` mode.
        """
        if self.settings.scoring == "likelihood" and images.key is not None:
            columns = [[text] for text in dict.fromkeys(descriptions)]
            self._complete(images, np.arange(len(images.rows)), columns)

    def _place(self, images: np.ndarray, values: np.ndarray) -> None:
        options = values.shape[1]
        tally = self.usage.places.setdefault(options, PositionTally.empty(options))
        tally.add(values, orders(images, options, self.seed))

    def _complete(self, images: ImageSource, at: np.ndarray, columns: list[list[str]]) -> None:
        """Score what is not known yet, all texts that an image lacks at once."""
        rows = images.rows[at]
        unknown = np.stack(
            [np.isnan(self._recall(images, texts)[rows, 0]) for texts in columns], axis=1
        )
        for pattern in np.unique(unknown[unknown.any(axis=1)], axis=0):
            wanted = [texts for texts, missing in zip(columns, pattern, strict=True) if missing]
            which = np.flatnonzero((unknown == pattern).all(axis=1))
            for texts, fresh in zip(wanted, self._ask(images, at[which], wanted), strict=True):
                self._recall(images, texts)[rows[which]] = fresh
        for texts, missing in zip(columns, unknown.T, strict=True):
            if missing.any():
                self._remember(images, texts)

    def _ask(
        self, images: ImageSource, at: np.ndarray, columns: list[list[str]]
    ) -> list[np.ndarray]:
        """Scores of every image for each set of texts, in batches, some of them at once."""
        scoring, size = self.settings.scoring, self.settings.batch_size
        texts = [text for column in columns for text in column]
        batches = [at[start : start + size] for start in range(0, len(at), size)]
        clock = time.time()

        def score(batch: np.ndarray) -> Scores:
            return self.scorer.score(images.read(batch), texts, scoring, self.seed)

        if self.scorer.parallel > 1 and len(batches) > 1:
            with ThreadPoolExecutor(self.scorer.parallel, "look") as pool:
                answers = list(pool.map(score, batches))
        else:
            answers = [score(batch) for batch in batches]
        values = np.concatenate([answer.values for answer in answers])
        if values.shape != (len(at), len(texts) + 1):
            raise RuntimeError(f"{len(at)} images were sent to the model, {len(values)} came back")
        self.usage.images += len(at)
        self.usage.seconds += time.time() - clock
        self.usage.scorings += len(at) * len(columns)
        self.usage.parse_failures += sum(answer.parse_failures for answer in answers)
        self._trace(scoring, images.label, clock, texts, [round(float(v), 3) for v in values[0]])
        if scoring == "likelihood":
            return [values[:, i : i + 1] for i in range(len(texts))]
        return [values]

    # -- memory ------------------------------------------------------------------------------

    def _name(self, images: ImageSource, texts: list[str]) -> str:
        scoring = self.settings.scoring
        what = [self.scorer.model, SCORE_VERSION, scoring, *texts]
        if scoring != "likelihood":
            what.append(str(self.seed))
        assert images.key is not None
        digest = hashlib.sha256("\0".join(what).encode()).hexdigest()[:24]
        return f"scores/{images.key[:24]}/{scoring}-{digest}.safetensors"

    def _recall(self, images: ImageSource, texts: list[str]) -> np.ndarray:
        name = self._name(images, texts)
        if name not in self._tables:
            width = 1 if self.settings.scoring == "likelihood" else len(texts) + 1
            table = np.full((images.count, width), np.nan, np.float32)
            if self._folder is not None and self._folder.exists(name):
                stored = load(self._folder.read(name), name)
                table[stored["rows"].numpy()] = stored["scores"].numpy()
            self._tables[name] = table
        return self._tables[name]

    def _remember(self, images: ImageSource, texts: list[str]) -> None:
        if self._folder is None:
            return
        name = self._name(images, texts)
        table = self._tables[name]
        known = np.flatnonzero(~np.isnan(table[:, 0]))
        self._folder.write(name, dump({"rows": known, "scores": table[known]}))

    def _trace(self, kind: str, label: str, clock: float, asked: Any, answer: Any) -> None:
        if len(self.traces) < MOST_TRACES:
            self.traces.append(
                {
                    "kind": kind,
                    "task": label,
                    "model": self.scorer.model,
                    "began": clock,
                    "seconds": time.time() - clock,
                    "asked": asked,
                    "answer": answer,
                }
            )
