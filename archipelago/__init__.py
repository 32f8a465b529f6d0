"""Continual learning for CLIP on Ray: a model that grows by domain after domain and forgets none.

    import archipelago

    run = archipelago.learn(stream="folder", **{"stream.root": "/data/images"}, run_dir="/runs/a")
    model = archipelago.open("/runs/a")
    model.answer(["seven.png"])
    archipelago.Client("http://localhost:8000").classify(["seven.png"])

Everything lies below this name. Installed, the folders `pipeline`, `actors`, `jobs` and `conf` are
inside this one; in a checkout they lie beside it, and are found there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

_HERE = Path(__file__).resolve().parent
if not (_HERE / "pipeline").is_dir():
    __path__.append(str(_HERE.parent))

if TYPE_CHECKING:
    from archipelago.actors.client import Client
    from archipelago.pipeline.learned import Answer, LearnedModel

__all__ = ["Answer", "Client", "LearnedModel", "__version__", "learn", "open"]

DISTRIBUTION = "archipelago-cl"
_WHERE = {
    "Answer": "archipelago.pipeline.learned",
    "Client": "archipelago.actors.client",
    "LearnedModel": "archipelago.pipeline.learned",
}


def open(
    run: str | os.PathLike[str],
    manifest: int | None = None,
    device: str = "auto",
    backbone: str | None = None,
) -> LearnedModel:
    """The model of a run folder, or of an export, in this process; no Ray, no server.

    Args:
        run: a path or a URI.
        manifest: which version; None = the newest.
        device: `auto`, `cpu` or `cuda`.
        backbone: where the same backbone lies on this machine; None = as the run names it.

    Raises:
        UserError: not a run, no such manifest, or another backbone than the run's.
        IntegrityError: a file is missing or altered.
    """
    from archipelago.pipeline.learned import LearnedModel

    return LearnedModel.open(run, manifest, device, backbone)


def learn(run_dir: str | os.PathLike[str] | None = None, **settings: Any) -> Path | str:
    """Learn a stream of domains, as `archipelago learn` does; the same call continues a run.

    Args:
        run_dir: where everything is written; None = below `runs/`.
        **settings: `stream="folder"`, `seed=1`, and `**{"stream.root": "/data"}` for dotted keys;
            lists and sections are plain Python.

    Returns:
        The run's folder, or its URI.

    Raises:
        UserError: a mistake in the settings or the data, in one line that says the mend.
        LockedError: another run holds the folder.
    """
    from archipelago.actors.learning import learn as learn_words
    from archipelago.actors.words import as_words

    given = settings if run_dir is None else {**settings, "run_dir": os.fspath(run_dir)}
    used, _ = learn_words(as_words(given))
    found = str(used.run_dir)
    return found if "://" in found else Path(found)


def __getattr__(name: str) -> Any:
    """What needs more than this file, at its first use."""
    if name == "__version__":
        return _version()
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'archipelago' has no attribute {name!r}")


def _version() -> str:
    """Of the checkout that this is, else of the installed distribution."""
    project = _HERE.parent / "pyproject.toml"
    if not (_HERE / "pipeline").is_dir() and project.exists():
        import tomllib

        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    from importlib.metadata import version

    return version(DISTRIBUTION)
