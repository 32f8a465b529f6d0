"""A dry run: settings as they are resolved, and the time, memory and bytes to expect.

    python jobs/plan.py stream=folder stream.root=/data/images run_dir=/data/runs/first

Checks first, as `check` does, then times a few passes and steps on this machine. Nothing is
written.
Exit codes: 0 the run can begin, 2 something is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from archipelago.actors.exits import exit_codes
from archipelago.pipeline.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from archipelago.actors.forecast import Forecast
    from archipelago.pipeline.settings import Settings

MIB = 2**20


@exit_codes("plan")
def main(arguments: Sequence[str]) -> int:
    """Probe and tell; returns the exit code."""
    from archipelago.actors.checking import check
    from archipelago.actors.forecast import forecast

    checked = check(arguments, sample=8)
    if checked.faults:
        more = len(checked.faults) - 1
        hint = f" ({more} more: archipelago check)" if more else ""
        raise UserError(f"{checked.faults[0]}{hint}")
    console = Console(highlight=False)
    found = forecast(checked)
    for line in changed(checked.settings):
        console.print(line, markup=False, soft_wrap=True)
    console.print(expected(found, len(checked.domains)))
    return EXIT_DONE


def changed(settings: Settings) -> Iterator[str]:
    """Settings that are not those of an empty command line, secrets hidden."""
    from archipelago.pipeline.config import flatten, load, redacted

    usual = flatten(redacted(load([])))
    for key, value in flatten(redacted(settings)).items():
        if usual.get(key) != value:
            yield f"{key}={value}"


def expected(found: Forecast, domains: int) -> Table:
    """The forecast as a table."""
    from archipelago.pipeline.pace import in_words

    table = Table(header_style="bold")
    table.add_column("to expect")
    table.add_column("", justify="right")
    for name, seconds in found.seconds.items():
        table.add_row(f"time of {name}, about", in_words(seconds))
    table.add_row("images to decode", f"{found.images:,}")
    table.add_row("disk for decoded images, MiB", f"{found.decoded_bytes / MIB:,.0f}")
    stored = domains * found.domain_bytes
    table.add_row(f"stored for {domains} domains, MiB", f"{stored / MIB:,.1f}")
    table.add_row("memory for trunk activations, MiB", f"{found.cached_bytes / MIB:,.0f}")
    for resource, count in found.held.items():
        if count:
            table.add_row(f"{resource}s held at once", f"{count:g}")
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
