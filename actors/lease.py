"""A lease on a Serve application: when its last holder is gone, the application goes.

The monitor is a detached actor without resources. Holders renew; whoever is killed stops renewing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import ray

NAMESPACE = "archipelago"
BEATS = 4  # signs of life in the time of one lease


class LeaseMonitor:
    """Body of the actor.

    Args:
        application: name of the Serve application to delete.
        lease_s: seconds without a sign of life after which a holder counts as gone.
    """

    def __init__(self, application: str, lease_s: float) -> None:
        self._application, self._lease_s = application, lease_s
        self._holders = {"creator": time.monotonic()}
        self._me = ray.get_runtime_context().current_actor
        threading.Thread(target=self._watch, daemon=True).start()

    def hold(self, holder: str) -> None:
        """A sign of life."""
        self._holders[holder] = time.monotonic()

    def release(self, holder: str) -> None:
        """The holder has ended in order."""
        self._holders.pop(holder, None)
        self._holders.pop("creator", None)

    def _watch(self) -> None:
        while True:
            time.sleep(self._lease_s / BEATS)
            limit = time.monotonic() - self._lease_s
            if all(seen < limit for seen in list(self._holders.values())):
                self._end()

    def _end(self) -> None:
        from ray import serve

        with contextlib.suppress(Exception):  # a cluster that is going down takes it along
            serve.delete(self._application, _blocking=False)
        ray.kill(self._me)


class Lease:
    """A holder's side: renews on a thread until it is released or the process ends."""

    def __init__(self, application: str, holder: str, lease_s: float) -> None:
        self._arguments = (application, lease_s)
        self._holder, self._lease_s = holder, lease_s
        self._over = threading.Event()
        self._monitor = self._find()
        self._monitor.hold.remote(holder).future().result()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _find(self) -> Any:
        application, lease_s = self._arguments
        return (
            ray.remote(LeaseMonitor)
            .options(
                name=f"{application}-lease",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=0,
            )
            .remote(application, lease_s)
        )

    def _renew(self) -> None:
        while not self._over.wait(self._lease_s / BEATS):
            try:
                self._monitor.hold.remote(self._holder).future().result(self._lease_s)
            except Exception:  # the monitor is lost: another one takes over
                with contextlib.suppress(Exception):
                    self._monitor = self._find()

    def release(self) -> None:
        """Give the lease back; the application goes soon after the last one."""
        self._over.set()
        with contextlib.suppress(Exception):
            self._monitor.release.remote(self._holder).future().result(self._lease_s)
