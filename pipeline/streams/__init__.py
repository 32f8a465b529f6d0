"""Streams of image domains: readers, decoding with quarantine, and the memory-mapped cache."""

from pipeline.streams.cache import ImageTable, PreparedDomain, prepare
from pipeline.streams.domain import Chunk, Domain, RawRow, Reader, Split
from pipeline.streams.folds import stratified_fold
from pipeline.streams.registry import reader, register
from pipeline.streams.stream import open_stream

__all__ = [
    "Chunk",
    "Domain",
    "ImageTable",
    "PreparedDomain",
    "RawRow",
    "Reader",
    "Split",
    "open_stream",
    "prepare",
    "reader",
    "register",
    "stratified_fold",
]
