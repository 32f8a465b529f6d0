"""Streams of image domains: readers, decoding with quarantine, and the memory-mapped cache."""

from archipelago.pipeline.streams.cache import ImageTable, PreparedDomain, prepare
from archipelago.pipeline.streams.dense import DenseTable
from archipelago.pipeline.streams.domain import Chunk, Domain, RawRow, Reader, Split
from archipelago.pipeline.streams.folds import stratified_fold
from archipelago.pipeline.streams.registry import readers, register
from archipelago.pipeline.streams.stages import Stage, plan_stages
from archipelago.pipeline.streams.stream import open_stream
from archipelago.pipeline.streams.targets import Target, Unusable

__all__ = [
    "Chunk",
    "DenseTable",
    "Domain",
    "ImageTable",
    "PreparedDomain",
    "RawRow",
    "Reader",
    "Split",
    "Stage",
    "Target",
    "Unusable",
    "open_stream",
    "plan_stages",
    "prepare",
    "readers",
    "register",
    "stratified_fold",
]
