"""TRGE whose groups are ASE groups: one group a stage, some of its experts shared by all images."""

from __future__ import annotations

from archipelago.pipeline.methods.base import register
from archipelago.pipeline.methods.trge import Trge


@register
class TrgeAse(Trge):
    """Two-level routing over groups with adaptive shared experts (arXiv 2508.07738, 2510.00570)."""

    name = "trge_ase"
