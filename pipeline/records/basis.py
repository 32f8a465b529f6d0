"""The basis of compact features as a run keeps it: a file with a hash, never made twice."""

from __future__ import annotations

import numpy as np

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.store import RunFolder, names
from archipelago.pipeline.store.tensors import dump, load


def keep_basis(run: RunFolder, basis: Basis) -> None:
    """Store the basis with a run; whoever opens the run needs the same."""
    run.folder.write(names.BASIS, dump(basis.arrays()))


def read_basis(run: RunFolder) -> Basis:
    """The basis of a run.

    Raises:
        UserError: there is none.
        IntegrityError: the file is damaged, or not the one that the run was learned with.
    """
    shown = run.folder.shown(names.BASIS)
    try:
        data = run.folder.read(names.BASIS)
    except FileNotFoundError:
        raise UserError(
            f"{shown} does not exist; start the run's command again, which writes it"
        ) from None
    try:
        basis = Basis.load({k: np.asarray(v) for k, v in load(data, shown).items()})
    except (KeyError, ValueError, TypeError) as error:
        raise IntegrityError(f"{shown} is not a basis ({error})") from None
    if run.exists():
        recorded = run.read()["backbone"].get("basis")
        if recorded is not None and recorded != basis.digest:
            raise IntegrityError(f"{shown} is not the basis that the run was learned with")
    return basis
