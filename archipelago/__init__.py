"""Continual learning for CLIP on Ray: a model that grows by domain after domain and forgets none.

Everything lies below this name. Installed, the folders `pipeline`, `actors`, `jobs` and `conf` are
inside this one; in a checkout they lie beside it, and are found there.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
if not (_HERE / "pipeline").is_dir():
    __path__.append(str(_HERE.parent))
