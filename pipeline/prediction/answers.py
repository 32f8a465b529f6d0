"""A unit's answers as a table: one row an image, in the order of the listing.

Shapes: n images, S side, F embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.learned import Answer, LearnedModel
from archipelago.pipeline.methods import method_class
from archipelago.pipeline.prediction.reading import Decoded
from archipelago.pipeline.records.group import read_card
from archipelago.pipeline.store import GroupRef, RunFolder

NAMED = pa.struct([("label", pa.string()), ("probability", pa.float64())])
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float64()),
        ("domain", pa.string()),
        ("unseen", pa.bool_()),
        ("top_k", pa.list_(NAMED)),
        ("error", pa.string()),
    ]
)
EMBEDDING = pa.field("embedding", pa.list_(pa.float32()))


@dataclass(frozen=True)
class Question:
    """What is asked of every image; see `LearnedModel.answer`.

    Attributes:
        candidates: names to choose from; None = all learned classes.
        task: the domain, where it is known.
        top_k: how many names come back.
        abstain: share of the learned domains' images that may be refused; None = none is.
        embedding: whether features of frozen CLIP come back too.
    """

    candidates: tuple[str, ...] | None = None
    task: str | None = None
    top_k: int = 5
    abstain: float | None = None
    embedding: bool = False


def check_question(run: RunFolder, refs: tuple[GroupRef, ...], question: Question) -> None:
    """Can the model of these groups be asked so? Before anything is read.

    Raises:
        UserError: with the word that is wrong or missing.
    """
    name = run.read()["config"]["method"]["name"]
    method = method_class(name)
    tasks = [task for ref in refs for task in read_card(run, ref)["tasks"]]
    learned = list(dict.fromkeys(task["name"] for task in tasks if not task["kind"]))
    known = ", ".join(learned) or "none"
    if question.task is not None and question.task not in learned:
        raise UserError(f"task={question.task}: is not learned; learned are: {known}")
    if not learned and question.candidates is None:
        raise UserError(
            "candidates: must be given, candidates=[a,b]: no domain with classes is learned"
        )
    if learned and question.task is None and method.policy == "given":
        raise UserError(
            f"task: must be given, task=NAME: method {name} does not tell domains apart; learned"
            f" are: {known}"
        )
    if question.abstain is not None and not method.identifies():
        raise UserError(f"abstain: method {name} does not say how new an image looks; leave it out")


class Predictor:
    """A learned model that answers unit after unit.

    Args:
        model: which answers.
        question: what is asked.
        batch_size: images in one pass.
    """

    def __init__(self, model: LearnedModel, question: Question, batch_size: int) -> None:
        self.model, self.question, self.batch_size = model, question, batch_size

    def table(self, decoded: Decoded) -> pa.Table:
        """The answers to a unit."""
        question = self.question
        answers, features = self.model.answer_and_embed(
            decoded.pixels,
            question.candidates,
            question.task,
            question.top_k,
            question.abstain,
            self.batch_size,
        )
        return tabulated(decoded, answers, features if question.embedding else None)


def tabulated(
    decoded: Decoded, answers: list[Answer], features: np.ndarray | None = None
) -> pa.Table:
    """Answers of the readable images among all of a unit's.

    Args:
        decoded: the unit.
        answers: n.
        features: (n, F), for the column `embedding`.
    """
    said = iter(answers)
    rows = [
        {"path": path, "error": error} if error else {"path": path, **_columns(next(said))}
        for path, error in zip(decoded.paths, decoded.errors, strict=True)
    ]
    table = pa.Table.from_pylist(rows, SCHEMA)
    if features is None:
        return table
    vectors: Iterator[np.ndarray] = iter(features)
    column = [None if error else next(vectors) for error in decoded.errors]
    return table.append_column(EMBEDDING, pa.array(column, EMBEDDING.type))


def _columns(answer: Answer) -> dict[str, object]:
    label, probability = answer.classes[0] if answer.classes else (None, None)
    return {
        "label": label,
        "probability": probability,
        "domain": answer.task,
        "unseen": answer.unseen,
        "top_k": [{"label": name, "probability": p} for name, p in answer.classes],
    }
