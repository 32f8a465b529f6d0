"""How a stream is learned: one file per method, each registering itself by name."""

from archipelago.pipeline.methods.adapter import Adapter, Neighbour, StageContext
from archipelago.pipeline.methods.base import (
    Fitted,
    Method,
    StageData,
    build_method,
    method_class,
    method_options,
    methods,
)
from archipelago.pipeline.methods.view import Function, View

__all__ = [
    "Adapter",
    "Fitted",
    "Function",
    "Method",
    "Neighbour",
    "StageContext",
    "StageData",
    "View",
    "build_method",
    "method_class",
    "method_options",
    "methods",
]
