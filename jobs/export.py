"""Hand a learned model on: a folder in Hugging Face's layout that opens without its run.

    python jobs/export.py run_dir=/data/runs/first to=/data/models/first
    python jobs/export.py run_dir=/data/runs/first to=/data/models/first onnx=pets
    python jobs/export.py run_dir=/data/runs/first to=/data/models/first hub=me/first

The newest model is written, with a model card; `LearnedModel.open("/data/models/first")` answers
from it. An earlier export of the same run is replaced as a whole.
Exit codes: 0 done, 1 failure, 2 a mistake of the user's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from rich.console import Console

from archipelago.actors.exits import exit_codes
from archipelago.actors.words import Words, read_words
from archipelago.pipeline.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from archipelago.pipeline.export.folder import Exported

SETTINGS = False  # but its own words it takes none


class Own(Words):
    """What exporting takes; there are no settings."""

    run_dir: str = Field(description="the run whose newest model is exported")
    to: str = Field(description="a new or empty folder, or an earlier export of the same run")
    onnx: str | None = Field(None, description="a domain: its function also as an ONNX file")
    hub: str | None = Field(None, description="push it to the Hugging Face hub under this name")


@exit_codes("export", "not exported; the same command tries again")
def main(arguments: Sequence[str]) -> int:
    """Export the newest model of a run; returns the exit code."""
    words, _ = read_words(arguments, Own, settings=False)
    if "://" in words.to:
        raise UserError(f"to={words.to}: give a folder of this machine")
    from archipelago.actors.logs import show_logs
    from archipelago.pipeline.export.folder import export_run
    from archipelago.pipeline.export.hub import push

    show_logs()
    console = Console(highlight=False, soft_wrap=True)
    done = export_run(words.run_dir, Path(words.to).expanduser().absolute(), words.onnx)
    tell(done, words, console)
    if words.hub:
        console.print(f"  pushed: {push(done.folder, words.hub)}")
    return EXIT_DONE


def tell(done: Exported, words: Own, console: Console) -> None:
    """What was written, in a few lines."""
    console.print(f"manifest {done.manifest} with {', '.join(done.tasks)}: {done.folder}")
    console.print(f"  {done.size / 2**20:.1f} MiB; LearnedModel.open({str(done.folder)!r}) answers")
    if done.deviation is not None:
        console.print(
            f"  onnx: {words.onnx}; probabilities differ from the model's by {done.deviation:.1g}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
