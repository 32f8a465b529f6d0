"""Dense tasks: a label, a vector or an edge for every pixel. Heads, losses, metrics, views."""

from pipeline.dense.base import DenseTask, Metric, Score, build, kinds

__all__ = ["DenseTask", "Metric", "Score", "build", "kinds"]
