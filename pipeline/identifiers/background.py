"""The background of a backbone: shipped with it, given by path, or computed from given features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from pipeline.errors import UserError
from pipeline.identifiers.signature import Background
from pipeline.model.backbone import EMBEDDED
from pipeline.settings import BackboneSettings
from pipeline.store import RunFolder
from pipeline.store.tensors import dump, load

FILE = "background.safetensors"


def find_background(settings: BackboneSettings) -> Path | None:
    """Where the background of a backbone lies, or None if there is no file.

    Raises:
        UserError: `backbone.background` names a file that is not there.
    """
    if settings.background is not None:
        path = Path(settings.background)
        if not path.is_file():
            raise UserError(
                f"backbone.background: {path} does not exist; make it with jobs/background.py"
            )
        return path
    folder = EMBEDDED.get(settings.name) or Path(settings.name.removeprefix("local-dir:"))
    path = folder / FILE
    return path if path.is_file() else None


def save_background(path: Path, background: Background) -> None:
    """Store mean and upper triangle of the covariance, single precision."""
    upper = background.covariance[np.triu_indices(len(background.mean))]
    save_file(
        {
            "mean": background.mean.astype(np.float32),
            "covariance": upper.astype(np.float32),
            "source": np.frombuffer(background.source.encode(), dtype=np.uint8),
        },
        path,
    )


def load_background(path: Path, columns: np.ndarray) -> Background:
    """Read a background and keep the columns of the signature in use.

    Args:
        path: a file of `save_background`, made with `identifier.depths=all`.
        columns: indices into its features.

    Raises:
        UserError: the file belongs to another backbone.
    """
    arrays = load_file(path)
    width = len(arrays["mean"])
    if columns.max() >= width:
        raise UserError(
            f"backbone.background: {path} has {width} features; it is of another backbone"
        )
    full = np.zeros((width, width))
    full[np.triu_indices(width)] = arrays["covariance"]
    full += np.triu(full, 1).T
    source = arrays["source"].tobytes().decode()
    mean = arrays["mean"].astype(np.float64)[columns]
    return Background(mean, full[np.ix_(columns, columns)], source)


def signature_columns(
    width: int, embedding: int, layers: int, which: str, first: int
) -> np.ndarray:
    """Columns of the `all` signature that another choice of depths uses.

    Args:
        width: channels of the image encoder.
        embedding: features of CLIP.
        layers: blocks of the image encoder.
        which: `all`, `trunk` or `final`.
        first: first adapted block, the end of the trunk.
    """
    every = depths(layers, "all", first)
    chosen = depths(layers, which, first)
    parts = [np.arange(2 * width) + 2 * width * i for i, d in enumerate(every) if d in chosen]
    if which != "trunk":
        parts.append(np.arange(embedding) + 2 * width * len(every))
    return np.concatenate(parts)


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


def keep_run_background(run: RunFolder, background: Background) -> None:
    """Store a computed background with the run, exactly: whoever serves it needs the same."""
    upper = background.covariance[np.triu_indices(len(background.mean))]
    source = np.frombuffer(background.source.encode(), dtype=np.uint8)
    arrays = {"mean": background.mean, "covariance": upper, "source": source}
    run.folder.write(FILE, dump(arrays))


def read_run_background(run: RunFolder) -> Background:
    """The background that was computed for this run.

    Raises:
        UserError: there is none.
    """
    if not run.folder.exists(FILE):
        raise UserError(
            f"{run.folder.shown(FILE)}: does not exist, and the backbone brings no background;"
            " start the run's command again, which writes it"
        )
    arrays = load(run.folder.read(FILE), FILE)
    width = len(arrays["mean"])
    full = np.zeros((width, width))
    full[np.triu_indices(width)] = arrays["covariance"].numpy()
    full += np.triu(full, 1).T
    source = bytes(arrays["source"].numpy().tobytes()).decode()
    return Background(arrays["mean"].numpy(), full, source)
