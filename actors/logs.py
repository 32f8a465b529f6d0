"""What a run says: its own lines, the workers' lines, and of Ray's only what a person can use."""

from __future__ import annotations

import logging
import os
import sys

import ray
from rich.logging import RichHandler

from archipelago.pipeline.pace import BARS, bars_aside
from archipelago.pipeline.redact import discreet_text

OWN = ("archipelago",)
TIME = "%H:%M:%S"
SETUP_HOOK = f"{__name__}.set_up_worker"
# Ray's, by what they say too often.
CHATTER = {
    "ray.data._internal.progress": logging.ERROR,  # that progress bars are off, as asked for
    "ray.data._internal.execution.streaming_executor": logging.WARNING,  # that a data set is done
    # That there is no API server to ask, each second, where the dashboard is off.
    "ray.train.v2._internal.execution.controller.placement_group_cleaner": logging.ERROR,
    # That a request for resources was not heard within 5 s on a busy machine; it is made again.
    "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client": logging.ERROR,
}


class Discreet(logging.Formatter):
    """Lines, and the tracebacks below them, without the secrets that they quote."""

    def format(self, record: logging.LogRecord) -> str:
        """The line as it may be shown."""
        return discreet_text(super().format(record))


class AboveBars(RichHandler):
    """Lines of a terminal on which there may be bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        with bars_aside():
            super().emit(record)


class AtLeast(logging.Filter):
    """Lets through what is so severe. Unlike a logger's level, Ray Train's set-up leaves it."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is severe enough."""
        return record.levelno >= self._level


FILTERS = {name: AtLeast(level) for name, level in CHATTER.items()}


def show_logs() -> None:
    """Log to the console, unless whoever runs this has set up logging."""
    if sys.stderr.isatty():
        os.environ[BARS] = "1"
    root = logging.getLogger()
    if not root.handlers:
        handler: logging.Handler = AboveBars(
            show_path=False, show_level=False, log_time_format=TIME
        )
        line = "%(message)s"
        if not sys.stdout.isatty():  # in a file a message is one line, however long
            handler, line = logging.StreamHandler(sys.stdout), "%(asctime)s %(message)s"
        handler.setFormatter(Discreet(line, TIME))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
    _set_levels()


def set_up_worker() -> None:
    """First thing in each of Ray's worker processes; what they print comes out at the driver."""
    # Parts of Ray Train look for the cluster here, and give up where a machine has two.
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    _set_levels()


def _set_levels() -> None:
    for name in OWN:
        logging.getLogger(name).setLevel(logging.INFO)
    for name, severe in FILTERS.items():
        logging.getLogger(name).addFilter(severe)  # the same one twice counts once
