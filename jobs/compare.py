"""Methods side by side on your data: what each gives, and what it costs.

    python jobs/compare.py 'methods=[zero_shot,ridge_per_task,archipelago]' run_dir=/data/runs/side
    python jobs/compare.py 'methods=[zero_shot,lora,archipelago(group=off)]' 'seeds=[0,1]' \
        'orders=[alphabetical,reverse,seeded]' stream=parquet stream.root=/data/domains run_dir=DIR
    python jobs/compare.py 'streams=[atlas,/data/domains]' 'methods=[...]' run_dir=DIR

All other words are settings as of `jobs/sequence.py`, the same for every method. Each method in
each world (stream, order, seed) is a run of its own below `run_dir`; the same command continues
what was interrupted, and more methods, seeds or orders may join. `tune=on` finds each method's
learning rate first, on training images of the first two domains. Ends in compare.json, .md, .html
and .parquet.
Exit codes: 0 done, 1 failure, 2 a mistake of the user's, 3 the folder is locked, 143 stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import Field
from rich.console import Console

from archipelago.actors.exits import exit_codes
from archipelago.actors.words import Words
from archipelago.pipeline.errors import EXIT_DONE


class Own(Words):
    """What is compared; everything else is the same for all."""

    methods: str = Field(description="[a,b(option=value)]: who is compared")
    streams: str = Field("[]", description="[atlas,/data/a]: several; [] = that of `stream`")
    seeds: str = Field("[0]", description="of folds, weights, batches and drawn images")
    orders: str = Field("[alphabetical]", description="alphabetical, reverse, seeded, given")
    at_once: int = Field(1, description="worlds at a time, each in a process of its own")
    tune: str = Field("off", description="on = each method's learning rate on two domains")


@exit_codes(
    "compare", "the comparison failed; the same command continues from the last finished step"
)
def main(arguments: Sequence[str]) -> int:
    """Compare methods; returns the exit code."""
    from archipelago.actors.comparing import Comparison
    from archipelago.pipeline.benchmark.plan import read_plan
    from archipelago.pipeline.benchmark.summary import tables

    plan, words = read_plan(arguments)
    comparison = Comparison(plan, words)
    found = comparison.run()
    if plan.only:
        return EXIT_DONE
    console = Console()
    for table in tables(found):
        console.print(table)
    console.print(f"What it costs, and how sure that is: {comparison.folder.shown('compare.html')}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
