"""The folder of answers: a parquet file for each unit, whole or absent, and what made them.

    <output>/<unit>.parquet            answers, one row an image
    <output>/_prediction/state.json    model, words and input; `status` says whether all is there

Names that begin with an underscore are not read by who reads the folder as one table.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.prediction.units import Unit, is_unit
from archipelago.pipeline.store.folder import Folder
from archipelago.pipeline.store.lease import lock_of

OWN = "_prediction"
STATE = "state.json"
SCHEMA = 1
RUNNING, COMPLETE = "running", "complete"
SUFFIX = ".parquet"


class Output:
    """Answers in `folder`, which nothing else uses.

    Args:
        folder: where they lie; made at the first write.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._own = folder.child(OWN)

    def state(self) -> dict[str, Any] | None:
        """What the answers there were made with; None before the first.

        Raises:
            UserError: the folder holds something else.
        """
        shown = self.folder.shown()
        try:
            state = self._own.read_json(STATE)
        except FileNotFoundError:
            others = [name for name in self.folder.list() if name != OWN]
            if others:
                raise UserError(
                    f"output={shown}: holds {others[0]}, which no prediction wrote; give a new or"
                    " empty folder"
                ) from None
            return None
        except ValueError:
            state = None
        sound = isinstance(state, dict) and state.get("schema") == SCHEMA
        if not sound or not isinstance(state.get("made"), dict):
            raise UserError(f"{self._own.shown(STATE)}: cannot be understood; give another output")
        return dict(state)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one that writes here. Raises: LockedError naming the holder."""
        held = lock_of(self._own)
        held.acquire()
        try:
            self.folder.sweep(older_s=0)  # nobody else writes here
            yield
        finally:
            held.release()

    def begin(self, made: Mapping[str, Any]) -> None:
        """Say what the answers are made with, and that they are not all there."""
        self._write(made, RUNNING)

    def finish(self, made: Mapping[str, Any], images: int) -> None:
        """Say that all are there."""
        self._write(made, COMPLETE, images=images)

    def _write(self, made: Mapping[str, Any], status: str, **more: Any) -> None:
        self._own.write_json(STATE, {"schema": SCHEMA, "status": status, "made": made, **more})

    def done(self) -> set[str]:
        """Names of the units that are answered."""
        return {n.removesuffix(SUFFIX) for n in self.folder.list() if n.endswith(SUFFIX)}

    def keep(self, names: Collection[str]) -> tuple[set[str], int]:
        """Those units that are answered, and how many others were removed.

        Args:
            names: of the units that the input has now; answers to others would be of images that
                are gone, or are answered twice.

        Raises:
            UserError: there are parquet files that no prediction wrote.
        """
        done = self.done()
        stale = sorted(done - set(names))
        for name in stale:
            if not is_unit(name):
                raise UserError(
                    f"{self.folder.shown(name + SUFFIX)}: no prediction wrote this; move it away"
                )
        for name in stale:
            self.folder.delete(f"{name}{SUFFIX}")
        return done - set(stale), len(stale)

    def write(self, unit: Unit, answers: pa.Table) -> None:
        """Write the answers to a unit, whole or not at all."""
        file = io.BytesIO()
        pq.write_table(answers, file)
        self.folder.write(f"{unit.name}{SUFFIX}", file.getvalue())


def check_same(shown: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Are these the words and the model that an output was made with?

    Args:
        shown: the output, for messages.
        stored: `made` of its state.
        wanted: `made` of the command.

    Raises:
        UserError: naming the first that differs.
    """
    model = stored.get("model", {})
    for key, value in wanted["model"].items():
        if model.get(key) != value:
            before, now, mend = "another model", f"this ({key} differs)", ""
            if key == "manifest":
                before, now = _said(key, model.get(key)), _said(key, value)
                mend = f", or say {before}"
            raise UserError(
                f"output={shown}: was made with {before}, not {now}; give another output{mend}"
            )
    words = stored.get("words", {})
    for key, value in wanted["words"].items():
        if words.get(key) != value:
            raise UserError(
                f"output={shown}: was made with {_said(key, words.get(key))}, not"
                f" {_said(key, value)}; give another output, or the same word"
            )


def _said(key: str, value: Any) -> str:
    if isinstance(value, list):
        value = f"[{','.join(map(str, value))}]"
    if isinstance(value, bool):
        value = str(value).lower()
    return f"no {key}" if value is None else f"{key}={value}"
