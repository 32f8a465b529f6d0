"""Ray's environment variables that more than one place sets; importing this imports nothing."""

from __future__ import annotations

# Ray would start a worker process per logical CPU in advance. They fit no actor of a job with a
# runtime environment, and cost a small machine seconds.
NO_IDLE_WORKERS = ("RAY_prestart_worker_first_driver", "0")
