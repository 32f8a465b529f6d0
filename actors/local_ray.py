"""An own Ray on this machine, started with patience: a loaded machine is slow, not broken."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import ray

from archipelago.pipeline.errors import UserError

log = logging.getLogger("archipelago")

# Seconds for Ray's first processes to answer one another; 30 by default, or 10.
PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_py_gcs_connect_timeout_s": "60",
}
TEMPORARY = ("RAY_TMPDIR", "TMPDIR")  # the order in which Ray asks
# A socket's path is below 108 bytes; Ray's have this much below its temporary folder.
SOCKET_BYTES = 107
BELOW = len("/ray/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
REASON = 160


def start_local(**options: Any) -> None:
    """`ray.init` on this machine alone, tried twice.

    Raises:
        UserError: its sockets would have too long names, or it did not come up.
    """
    check_temporary()
    for name, seconds in PATIENCE.items():
        os.environ.setdefault(name, seconds)
    reason = ""
    for attempt in (1, 2):
        try:
            # Also where somebody runs `ray start` on this machine.
            ray.init(address="local", **options)
            return
        except ValueError:  # what was asked for cannot be, however often it is tried
            raise
        except OSError as error:
            if error.errno is not None:
                raise
            reason = _first(error)
        except Exception as error:
            reason = _first(error)
        ray.shutdown()
        if attempt == 1:
            log.warning("Ray did not start (%s); once more", reason)
    raise UserError(
        f"Ray did not start on this machine, twice ({reason}); end other programs and run the same"
        " command again, or do without Ray: cluster.*.num_workers=0"
    )


def check_temporary() -> None:
    """Can Ray's sockets lie below the temporary folder? Raises: UserError."""
    for name in TEMPORARY:
        place = os.environ.get(name)
        if place is None:
            continue
        long = len(os.fsencode(Path(place).absolute())) + BELOW
        if long > SOCKET_BYTES:
            raise UserError(
                f"{name}={place}: is {long - SOCKET_BYTES} bytes too long for Ray's sockets; set"
                " RAY_TMPDIR=/tmp, or another short folder"
            )
        return


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:REASON]
