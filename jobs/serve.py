"""Serve a run over HTTP, while it grows.

    python jobs/serve.py run_dir=/data/runs/first serving.port=8000
    python jobs/serve.py run_dir=/data/runs/first down=true

Returns 0 when the endpoint is ready; it stays up in the Ray it was pointed at (`cluster.address`,
`RAY_ADDRESS`, or the one that runs on this machine). Admin needs ARCHIPELAGO_ADMIN_TOKEN.
Exit codes: 0 ready (or taken down), 1 failure, 2 a mistake of the user's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import Field
from rich.console import Console

from archipelago.actors.exits import exit_codes
from archipelago.actors.words import Words, has_word, read_words
from archipelago.pipeline.errors import EXIT_DONE, UserError


class Own(Words):
    """What serving takes beside settings."""

    down: bool = Field(False, description="true = take the endpoint down")


@exit_codes("serve", "the endpoint did not come up")
def main(arguments: Sequence[str]) -> int:
    """Bring an endpoint up or take it down; returns the exit code."""
    from archipelago.actors.arguments import load_settings
    from archipelago.actors.bringup import bring_up
    from archipelago.actors.cluster import join_cluster
    from archipelago.actors.endpoint import take_down
    from archipelago.actors.logs import show_logs

    console = Console(highlight=False, soft_wrap=True)
    own, words = read_words(arguments, Own)
    settings = load_settings(words)
    if not has_word(words, "run_dir"):
        raise UserError("run_dir: say which run to serve, run_dir=DIR")
    show_logs()
    with join_cluster(settings):
        if own.down:
            name = settings.serving.name
            console.print(f"{name} is down" if take_down(name) else f"{name} was not up")
            return EXIT_DONE
        url = bring_up(settings)
    console.print(f"[bold]{url}[/bold] answers; {url}/docs says how")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
