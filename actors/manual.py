"""What `--help` prints of a job: its docstring, its own words, and the settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table
from rich.text import Text

from archipelago.actors.words import Words
from archipelago.pipeline import handbook

HELP = {"--help", "-h"}
COMMAND = "archipelago"
KEY_WIDTH = 42


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a job is asked how it is used."""
    return bool(HELP & set(arguments))


def show_manual(job: ModuleType, console: Console) -> None:
    """Print how a job is used; nothing of what it needs at work is imported.

    A job's own words are the subclass of `Words` in its module; `SETTINGS = False` there says that
    it takes no others.
    """
    console.print(usage(job.__doc__ or "").rstrip(), markup=False, highlight=False)
    own = next((kind for kind in vars(job).values() if is_own(kind, job)), None)
    if own is not None:
        console.print(_own(own))
    if getattr(job, "SETTINGS", True):
        console.print(
            "\nSettings, the same for every command: group=option takes another file, key=value"
            " changes one value.",
            highlight=False,
        )
        for group in (None, *handbook.groups()):
            console.print(_section(group))


def usage(docstring: str) -> str:
    """A job's docstring, its examples as this process was started: by the command, or by file."""
    if Path(sys.argv[0]).name != COMMAND:
        return docstring
    from archipelago.cli import VERBS  # the command is at work, so this is there already

    for verb, job in VERBS.items():
        docstring = docstring.replace(f"python jobs/{job}.py", f"{COMMAND} {verb}")
    return docstring


def is_own(kind: object, job: ModuleType) -> bool:
    """Whether this is the class of a job's own words."""
    return isinstance(kind, type) and issubclass(kind, Words) and kind.__module__ == job.__name__


def _own(own: type[Words]) -> Table:
    table = _table("\nIts own words")
    for key, field in own.model_fields.items():
        default = "..." if field.is_required() else _shown(field.default)
        table.add_row(Text(f"{key}={default}"), Text(field.description or ""))
    return table


def _shown(default: object) -> str:
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return str(default)


def _section(group: str | None) -> Table:
    if group is None:
        table = _table("")
    else:
        options = ", ".join(handbook.options(group))
        table = _table(f"\n{group}={handbook.groups()[group]} (of {options})")
    for entry in handbook.entries(group):
        table.add_row(Text(f"{entry.key}={entry.value}"), Text(entry.about))
    return table


def _table(title: str) -> Table:
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = title or None, "left", "bold"
    table.add_column(width=KEY_WIDTH, overflow="fold")
    table.add_column()
    return table
