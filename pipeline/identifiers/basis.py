"""The basis of a backbone: shipped with it, given by path, or made once for a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.linalg import solve_triangular

from archipelago.pipeline.closedform import Basis, Sums
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifier_settings import IdentifierSettings
from archipelago.pipeline.model.backbone import EMBEDDED
from archipelago.pipeline.settings import BackboneSettings
from archipelago.pipeline.store import names


def find_basis(settings: BackboneSettings) -> Path | None:
    """Where the basis of a backbone lies, or None if there is no file.

    Raises:
        UserError: `backbone.basis` names a file that is not there.
    """
    if settings.basis is not None:
        path = Path(settings.basis)
        if not path.is_file():
            raise UserError(f"backbone.basis: {path} does not exist; make it with jobs/basis.py")
        return path
    folder = EMBEDDED.get(settings.name) or Path(settings.name.removeprefix("local-dir:"))
    path = folder / names.BASIS
    return path if path.is_file() else None


def load_basis(path: Path, settings: IdentifierSettings) -> Basis | None:
    """A stored basis, narrowed to `identifier.width`; None where it reads other depths.

    Raises:
        UserError: the file is no basis.
    """
    try:
        basis = Basis.load(load_file(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"backbone.basis: {path} is no basis ({error})") from None
    return basis.narrowed(settings.width) if basis.depths == settings.depths else None


def save_basis(path: Path, basis: Basis) -> None:
    """Store a basis in a file of its own."""
    save_file(basis.arrays(), path)


def depths(layers: int, which: str, first: int) -> tuple[int, ...]:
    """Block counts after which the signature reads CLS and mean token (method 2.5).

    Args:
        layers: blocks of the image encoder.
        which: `all` = L/4, L/2, 3L/4; `trunk` = those inside the frozen trunk; `final` = none.
        first: first adapted block, the end of the trunk.

    Raises:
        UserError: the trunk is too short to hold a depth.
    """
    quarters = sorted({max(1, layers // 4), max(1, layers // 2), max(1, 3 * layers // 4)})
    if which == "final":
        return ()
    inside = tuple(d for d in quarters if which == "all" or d <= first)
    if not inside:
        raise UserError(
            f"identifier.depths=trunk: the trunk ends before block {quarters[0]}; raise"
            f" experts.first_block (now {first}) or set identifier.depths=all"
        )
    return inside


def task_distance(a: Sums, b: Sums, basis: Basis) -> float:
    """Cosine distance of two tasks' means, whitened by the background (method 2.6).

    Compact features are centred by the background already.
    """
    lower = np.linalg.cholesky(basis.target)
    x, y = (solve_triangular(lower, sums.mean, lower=True) for sums in (a, b))
    return float(1.0 - x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12))
