"""Environment variables that more than one place sets; importing this imports little."""

from __future__ import annotations

import os
import pwd
import tempfile

# Ray would start a worker process per logical CPU in advance. They fit no actor of a job with a
# runtime environment, and cost a small machine seconds.
NO_IDLE_WORKERS = ("RAY_prestart_worker_first_driver", "0")

# Threads of torch that wait for work give their core to other processes at once. On a machine whose
# few cores train and encode side by side both are half as fast again; one process alone is slower
# by a sixth at most.
NO_SPINNING = ("OMP_WAIT_POLICY", "PASSIVE")

# What a training worker prints goes out as it is, bars among it; Ray Train would log it instead.
PLAIN_PRINT = ("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")


def be_somebody() -> None:
    """A name and a home for a user whom the machine does not know, as in many containers.

    Libraries ask for both, and fail where there is no entry in the list of users.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("LOGNAME", f"user-{os.getuid()}")
        os.environ.setdefault("HOME", tempfile.gettempdir())
