"""Who may see example images: they are training images, which a domain's owner may want to keep."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from fastapi import Request

from archipelago.actors.http.admin import is_right
from archipelago.actors.http.problems import Problem
from archipelago.pipeline.settings import ServingSettings

FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


def gate(serving: ServingSettings, token_sha256: str | None) -> Callable[[Request], Problem | None]:
    """What stands between a request and example images, None for nothing.

    `serving.examples=on` shows them to everybody and `off` to nobody. `auto` shows them to those
    who bring the admin token, and without it on this machine alone: the endpoint listens on a
    loopback address, the request comes from one, and nobody passed it on.
    """

    def refusal(request: Request) -> Problem | None:
        if serving.examples == "on":
            return None
        if serving.examples == "off":
            return Problem(403, "example images are not shown: serving.examples=off")
        if is_right(request.headers.get("authorization"), token_sha256) or _is_local(request):
            return None
        if token_sha256 is None:
            return Problem(
                403, "example images are training images: serving.examples=on shows them"
            )
        return Problem(
            401, "example images need Authorization: Bearer <token>", {"WWW-Authenticate": "Bearer"}
        )

    def _is_local(request: Request) -> bool:
        if not is_loopback(serving.host) or any(name in request.headers for name in FORWARDED):
            return False
        return request.client is None or is_loopback(request.client.host, unknown=True)

    return refusal


def is_loopback(host: str, unknown: bool = False) -> bool:
    """Whether an address is of this machine alone; `unknown` is said of what is no address."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:  # a name, or the file of a socket
        return unknown
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
