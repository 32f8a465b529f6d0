"""The learned model: what a run learned, and the one way in which it answers."""

from typing import TYPE_CHECKING

from archipelago.pipeline.learned.asking import Answer, Ask

if TYPE_CHECKING:
    from archipelago.pipeline.learned.model import LearnedModel

__all__ = ["Answer", "Ask", "LearnedModel"]


def __getattr__(name: str) -> object:
    """`LearnedModel` at its first use: who only passes requests on need not load torch."""
    if name == "LearnedModel":
        from archipelago.pipeline.learned.model import LearnedModel

        return LearnedModel
    raise AttributeError(name)
