"""The command `archipelago VERB key=value ...`: each verb is a job of the same words.

Verbs are imported when they are called, so that help comes at once.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

VERBS = {
    "learn": "sequence",
    "check": "check",
    "plan": "plan",
    "predict": "predict",
    "evaluate": "evaluate",
    "compare": "compare",
    "ablate": "ablate",
    "diff": "diff",
    "serve": "serve",
    "publish": "publish",
    "rollback": "rollback",
    "forget": "forget",
    "relearn": "relearn",
    "retest": "retest",
    "identify": "identify",
    "export": "export",
    "basis": "basis",
    "sync": "sync",
    "ui": "ui",
    "version": "version",
}
"""Each verb's file in `jobs/`; the order is that of the help."""
EXIT_USER = 2
Given = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]

app = typer.Typer(
    name="archipelago",
    help="Continual learning for CLIP: learn domain after domain, forget none, prove it.",
    epilog="archipelago VERB --help says what a verb takes. Exit codes: 0 done, 1 failed, 2 no.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
)


def _verb(job: str) -> Callable[[list[str] | None], None]:
    """A verb's function; typer hands it all words, `--help` among them."""

    def call(words: Given = None) -> None:
        module = importlib.import_module(f"archipelago.jobs.{job}")
        raise typer.Exit(module.main(words or []))

    return call


def summary(job: str) -> str:
    """The first line of a job's docstring, read without importing it."""
    package = importlib.util.find_spec("archipelago.jobs")
    assert package is not None and package.submodule_search_locations
    file = Path(next(iter(package.submodule_search_locations))) / f"{job}.py"
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


for _name, _job in VERBS.items():
    app.command(
        _name,
        help=summary(_job),
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )(_verb(_job))


def run(arguments: Sequence[str]) -> int:
    """Call a verb with its words; returns the exit code."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
        near = difflib.get_close_matches(arguments[0], VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else "archipelago --help lists them"
        typer.echo(f"archipelago: {arguments[0]!r} is no verb; {hint}", err=True)
        return EXIT_USER
    if list(arguments) == ["--version"]:
        arguments = ["version"]
    try:
        app(list(arguments))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    return 0


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
