"""Versions of what results depend on."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

import archipelago

PACKAGES = ("torch", "open_clip_torch", "ray", "mlflow", "pyarrow", "numpy")


def versions() -> dict[str, str]:
    """By package, archipelago first."""
    found = {"archipelago": archipelago.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
