"""What is asked of the served model and what it says: plain values, without torch.

Processes that only pass requests on import this and not the model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ask:
    """What is wanted for one image.

    Attributes:
        task: the domain, where the caller knows it.
        labels: an open vocabulary; None = the classes of the domain.
        top_k: how many classes come back.
        shares: (domain, share) of the groups that speak for an image known to be none of the
            domains'; None = the identifier says. Never from a caller.
    """

    task: str | None = None
    labels: tuple[str, ...] | None = None
    top_k: int = 5
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
        task: the recognised or given domain, None for unseen images.
        task_confidence: probability of that choice; 1 for a given domain.
        unseen: whether frozen CLIP (with the likeliest groups) answered.
        weight: lambda, the share of the groups in an unseen image's answer; 0 for seen ones.
        groups: (domain, weight) of the groups at work.
        classes: (label, probability), the likeliest first.
    """

    task: str | None
    task_confidence: float
    unseen: bool
    weight: float
    groups: tuple[tuple[str, float], ...]
    classes: tuple[tuple[str, float], ...]
