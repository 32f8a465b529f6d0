"""How a stream is learned: one file per method, each registering itself by name."""

from pipeline.methods.base import Adapter, Method, StageContext, build_method, methods

__all__ = ["Adapter", "Method", "StageContext", "build_method", "methods"]
