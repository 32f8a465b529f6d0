"""What is asked of the learned model and what it says: plain values, without torch.

Processes that only pass requests on import this and not the model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ask:
    """What is wanted for one image.

    Attributes:
        task: the domain, where the caller knows it.
        labels: names to choose from; None = the classes of all domains, or of the given one.
        top_k: how many classes come back.
        templates: how CLIP reads labels that nobody learned, each with one `{}`; None = as usual.
        shares: (domain, log share) of every domain, where they are settled already; None = the
            identifier says. Never from a caller.
    """

    task: str | None = None
    labels: tuple[str, ...] | None = None
    top_k: int = 5
    templates: tuple[str, ...] | None = None
    shares: tuple[tuple[str, float], ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The domains that are named here, all of which must be known."""
        task = () if self.task is None else (self.task,)
        return task + tuple(name for name, _ in self.shares or ())


@dataclass(frozen=True)
class Answer:
    """What is said of one image.

    Attributes:
        task: the recognised or given domain, None for an image taken for none of them.
        task_confidence: probability of that choice; 1 for a given domain.
        unseen: whether it is taken for an image of no learned domain, given what was asked.
        weight: share of the learned groups where frozen CLIP has a part in the answer, else 0.
        groups: (domain, weight) of the groups at work.
        classes: (label, probability), the likeliest first.
        domains: (domain, probability) of the learned domains, the likeliest first; a given one is
            certain.
        unseen_probability: of being of no learned domain, whatever was asked; None where the
            method does not tell.
        refused: whether the answer is withheld, since the image looks too new; it then counts as
            unseen, and there are no classes.
    """

    task: str | None
    task_confidence: float
    unseen: bool
    weight: float
    groups: tuple[tuple[str, float], ...]
    classes: tuple[tuple[str, float], ...]
    domains: tuple[tuple[str, float], ...] = ()
    unseen_probability: float | None = None
    refused: bool = False
