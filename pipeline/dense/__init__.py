"""Dense tasks: a label, a vector or an edge for every pixel. Heads, losses, metrics, views."""

from archipelago.pipeline.dense.base import DenseTask, Metric, Score, build, kinds
from archipelago.pipeline.dense.head import stored_head, stored_heads

__all__ = ["DenseTask", "Metric", "Score", "build", "kinds", "stored_head", "stored_heads"]
