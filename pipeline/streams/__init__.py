"""Streams of image domains: readers, decoding with quarantine, and the memory-mapped cache."""

from pipeline.streams.cache import ImageTable, PreparedDomain, prepare
from pipeline.streams.dense import DenseTable
from pipeline.streams.domain import Chunk, Domain, RawRow, Reader, Split
from pipeline.streams.folds import stratified_fold
from pipeline.streams.registry import readers, register
from pipeline.streams.stages import Stage, plan_stages
from pipeline.streams.stream import open_stream
from pipeline.streams.targets import Target, Unusable

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
