"""The Ray that a job works on: one that runs, or an own one for as long as the job lasts."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import ray

from archipelago.actors.arguments import cache_dir
from archipelago.actors.environment import NO_IDLE_WORKERS, NO_SPINNING, PLAIN_PRINT
from archipelago.actors.local_ray import start_local
from archipelago.actors.logs import SETUP_HOOK
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.pace import BARS
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.streams.remote import NODE_CACHE_GIB, is_remote

JOIN_S = 10.0  # for a cluster to accept a connection
ADDRESS = "RAY_ADDRESS"
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray tells a submitted job's driver by it where it is
PLACE = re.compile(r"auto|local|ray://.+|(\[[0-9a-fA-F:.]+\]|[^\s:/?#@]+):\d{1,5}")


def uses_ray(settings: Settings, pooled: bool = False) -> bool:
    """Whether any part of a run wants worker processes; `pooled`: so does its multimodal model."""
    cluster = settings.cluster
    return pooled or any(w.num_workers for w in (cluster.train, cluster.encode, cluster.data))


def connect(settings: Settings, pooled: bool = False) -> bool:
    """Join the cluster of the submitted job or the configured one, else start a local Ray.

    Returns whether there is a connection now that has to be ended.
    """
    if not uses_ray(settings, pooled) or ray.is_initialized():
        return False
    cluster = settings.cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
    common: dict[str, Any] = {
        "log_to_driver": True,
        "logging_level": logging.WARNING,
        "runtime_env": {
            "worker_process_setup_hook": SETUP_HOOK,
            "env_vars": _environment(settings),
        },
    }
    address = wanted_address(cluster.address)
    if address or JOB in os.environ:
        _join(address or "auto", common)
        return True
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this node away
    os.environ.setdefault(*NO_IDLE_WORKERS)
    os.environ.setdefault(*NO_SPINNING)
    start_local(
        num_cpus=cluster.logical_cpus,
        object_store_memory=cluster.object_store_mib * 2**20,
        include_dashboard=cluster.dashboard,
        **common,
    )
    return True


def _environment(settings: Settings) -> dict[str, str]:
    """What workers must know: the room for copies of images of an object store; to draw bars."""
    if settings.run_dir is not None and is_remote(cache_dir(settings)):
        os.environ[NODE_CACHE_GIB] = str(settings.cluster.cache_gib)
    if BARS in os.environ:
        os.environ.setdefault(*PLAIN_PRINT)
    names = (NODE_CACHE_GIB, BARS, PLAIN_PRINT[0])
    return {name: os.environ[name] for name in names if name in os.environ}


def wanted_address(configured: str | None) -> str | None:
    """The cluster to join: as configured, else as the environment names it, else None.

    Raises:
        UserError: it is the address of a dashboard, or none at all.
    """
    key, address = "cluster.address", configured
    if not address:
        key, address = ADDRESS, os.environ.get(ADDRESS)
    if not address:
        return None
    mend = f"{'unset it' if key == ADDRESS else 'leave it out'}, or name HOST:6379"
    if address.lower().startswith(("http://", "https://")):
        raise UserError(
            f"{key}={address}: is the address of Ray's dashboard, where jobs are submitted; {mend}"
        )
    if not PLACE.fullmatch(address):
        raise UserError(f"{key}={address}: is no address of a Ray cluster; {mend}")
    return address


def _join(address: str, options: dict[str, Any]) -> None:
    """Connect to a running cluster; UserError where there is none, rather than minutes later."""
    nobody = f"cluster.address={address}: no Ray cluster answers there"
    host, colon, port = address.rpartition(":")
    try:
        if colon and port.isdecimal() and "://" not in address:
            socket.create_connection((host.strip("[]"), int(port)), JOIN_S).close()
        ray.init(address=address, **options)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{nobody} ({reason})") from error


@contextlib.contextmanager
def join_cluster(settings: Settings) -> Iterator[None]:
    """Be connected to a Ray that runs already and goes on without us.

    Raises:
        UserError: there is none.
    """
    if ray.is_initialized():
        yield
        return
    address = wanted_address(settings.cluster.address) or "auto"
    hook = {"worker_process_setup_hook": SETUP_HOOK}
    options: dict[str, Any] = {
        "logging_level": logging.WARNING,
        "log_to_driver": False,  # what is served goes on; its log is Serve's
        "runtime_env": hook,
    }
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if address == "auto":
        try:
            ray.init(address="auto", **options)
        except ConnectionError:
            raise UserError(
                "cluster.address: no Ray runs on this machine; start one with ray start --head,"
                " or name one"
            ) from None
    else:
        _join(address, options)
    try:
        yield
    finally:
        ray.shutdown()
