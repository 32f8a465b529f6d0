"""This machine's own addresses: reached without a proxy, and written as an address wants them."""

from __future__ import annotations

import ipaddress
import os

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")  # some readers want the brackets
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def spare_loopback() -> None:
    """Let no proxy stand between this process, or those it starts, and this machine."""
    told = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in told.split(",") if name.strip()]
    if "*" not in names:
        names += [name for name in LOOPBACK if name not in names]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(names)


def is_loopback(host: str) -> bool:
    """Whether a host, as it stands in an address, is this machine and no other."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def url_of(host: str, port: int) -> str:
    """Where what listens on `host` and `port` is reached from this machine."""
    name = EVERYWHERE.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
