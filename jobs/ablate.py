"""What each part of the method is worth, on a finished run: one switch changed at a time.

    python jobs/ablate.py run_dir=RUN

Nothing is learned: records are read, and stored features are answered anew. Prints a table, with
what each change gains over the run as it is (paired bootstrap over test images), and writes
`ablation.json` in the run folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from archipelago.actors.exits import exit_codes
from archipelago.actors.finished import open_finished
from archipelago.pipeline.config import validate
from archipelago.pipeline.errors import EXIT_DONE, UserError
from archipelago.pipeline.evaluation.ablation import VARIANTS, Ablation
from archipelago.pipeline.evaluation.console import percent
from archipelago.pipeline.store import RunFolder

AS_IT_IS = "as it is"


@exit_codes("ablate")
def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; returns the exit code."""
    console = Console(highlight=False)
    words = dict(word.partition("=")[::2] for word in arguments)
    unknown = sorted(words.keys() - {"run_dir"})
    if unknown or not words.get("run_dir"):
        named = f"{unknown[0]}: unknown here; " if unknown else ""
        raise UserError(f"{named}give run_dir=FOLDER, the folder of a finished run")
    run = RunFolder.open(words["run_dir"])
    settings = validate(run.read()["config"]).model_copy(update={"run_dir": run.uri})
    with run.lock():
        opened = open_finished(run, settings)
        ablation = Ablation(
            run, settings, opened.domains, opened.engine, opened.basis, opened.scale
        )
        with console.status(AS_IT_IS):
            base = ablation.answers({})
        rows = [ablation.row(AS_IT_IS, base, base)]
        for title, changes in VARIANTS.items():
            if ablation.applies(changes):
                with console.status(title):
                    found = ablation.answers(changes)
                rows.append(ablation.row(title, found, base))
        run.folder.write_json("ablation.json", {"rows": rows})
    console.print(table(rows, settings.method.name))
    return EXIT_DONE


def table(rows: Sequence[dict[str, Any]], method: str) -> Table:
    """Variants as rows; gains in points of Last in X-TAIL, plus or minus half their interval."""
    found = Table(
        title=f"{method}, one switch changed at a time: percent in X-TAIL", header_style="bold"
    )
    found.add_column("", no_wrap=True)
    for name in ("Transfer", "Average", "Last", "gain", "id given", "seen"):
        found.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        given, tail = (row["settings"][name] or {} for name in ("mtil_given", "xtail"))
        gain, said = tail.get("last_gain"), "-"
        if gain is not None:
            said = f"{gain['mean']:+.1f} ± {0.5 * (gain['high'] - gain['low']):.1f}"
        found.add_row(
            row["variant"], *(percent(tail.get(key)) for key in ("transfer", "average", "last")),
            said, percent(given.get("last")), percent(row["acceptance"]),
        )  # fmt: skip
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
