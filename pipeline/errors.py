"""Errors that a person can mend, and the exit codes of the drivers."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USER = 2
EXIT_LOCKED = 3
EXIT_STOPPED = 143


class UserError(ValueError):
    """Wrong input: the message is one line that names the key or file and says the mend."""


class LockedError(RuntimeError):
    """Another process writes to this run; the message names it."""


class IntegrityError(RuntimeError):
    """A stored file does not match its recorded sha256."""


class Refused(RuntimeError):
    """A generation that must not answer; the message is one line with the reason."""


class Stopped(BaseException):
    """The run was asked to stop (SIGTERM or Ctrl-C); `except Exception` lets it by."""
