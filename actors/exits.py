"""Every end of a job has its exit code; every mistake of the user's is one line."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from archipelago.actors.environment import be_somebody
from archipelago.actors.loopback import spare_loopback
from archipelago.actors.manual import asks_for_help, show_manual
from archipelago.actors.os_errors import in_words, one_line
from archipelago.pipeline.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_LOCKED,
    EXIT_STOPPED,
    EXIT_USER,
    IntegrityError,
    LockedError,
    Refused,
    Stopped,
    UserError,
)
from archipelago.pipeline.redact import discreet_text

log = logging.getLogger("archipelago")

Main = Callable[[Sequence[str]], int]
MISTAKES = (UserError, IntegrityError, Refused)


def exit_codes(job: str, failure: str = "") -> Callable[[Main], Main]:
    """Decorator of a job's `main`, which returns its own code when nothing is raised.

    What the operating system refuses (a full disk, a name that is too long) and what is stored
    and damaged are told like a mistake.

    Args:
        job: its name, before what is said.
        failure: what to log about any other error; empty = such errors are raised on.
    """

    def around(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(arguments: Sequence[str]) -> int:
            if asks_for_help(arguments):
                show_manual(sys.modules[main.__module__], Console())
                return EXIT_DONE
            be_somebody()
            spare_loopback()
            try:
                return main(arguments)
            except MISTAKES as error:
                return _say(job, getattr(error, "cause", None) or error, EXIT_USER)  # Ray's wrap
            except LockedError as error:
                return _say(job, error, EXIT_LOCKED)
            except Stopped:
                return _say(job, "stopped; the same command continues", EXIT_STOPPED)
            except Exception as error:
                if (words := in_words(error)) is not None:
                    log.debug("%s", words, exc_info=True)
                    return _say(job, words, EXIT_USER)
                if not failure:
                    raise
                log.exception(failure)
                return EXIT_FAILURE

        return guarded

    return around


def _say(job: str, message: object, code: int) -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(one_line(f"{job}: {discreet_text(str(message))}"), markup=False)
    return code
