"""Admin: publish, roll back, forget - behind a bearer token, or not there at all."""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from archipelago.actors.http.backend import Backend
from archipelago.actors.http.bodies import Task
from archipelago.actors.http.problems import Problem
from archipelago.pipeline.errors import UserError

TOKEN = "ARCHIPELAGO_ADMIN_TOKEN"
BEARER = HTTPBearer(auto_error=False, description=f"{TOKEN} of the server")


class ManifestRequest(BaseModel):
    """A model version of the run."""

    model_config = ConfigDict(extra="forbid")

    manifest: int = Field(ge=1, le=2**31, description="number of a manifest, see /v1/models")


class ForgetRequest(BaseModel):
    """A domain to be forgotten."""

    model_config = ConfigDict(extra="forbid")

    task: Task
    erase: bool = Field(False, description="also remove its files, for ever")
    test: bool = Field(
        False, description="also measure domains that borrowed from it on their test split; slow"
    )


def clean_token(token: str | None) -> str | None:
    """A token as both sides use it: without white space around it; None for none.

    Raises:
        UserError: a header cannot carry it.
    """
    kept = (token or "").strip()
    if not all(0x20 <= ord(letter) <= 0x7E for letter in kept):
        raise UserError(
            f"{TOKEN}: holds control or non-ASCII characters, which a header cannot carry; use"
            " letters, digits and signs"
        )
    return kept or None


def token_hash(token: str | None) -> str | None:
    """sha256 of a token, None for none: only the hash leaves the deployer's process.

    Raises:
        UserError: a header cannot carry it.
    """
    kept = clean_token(token)
    return hashlib.sha256(kept.encode()).hexdigest() if kept else None


def is_right(authorization: str | None, token_sha256: str | None) -> bool:
    """Whether a header brings the token; never where there is none."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    given = hashlib.sha256(token.strip().encode("utf-8", "replace")).hexdigest()
    same = hmac.compare_digest(given, token_sha256 or "")
    return same and scheme.lower() == "bearer"


def router(backend: Backend, token_sha256: str | None) -> APIRouter:
    """The admin routes; without a token each answers 404."""

    def allowed(request: Request, _: Annotated[object, Security(BEARER)]) -> None:
        if token_sha256 is None:
            raise Problem(404, f"admin is off: the server was started without {TOKEN}")
        if not is_right(request.headers.get("authorization"), token_sha256):
            raise Problem(401, "send Authorization: Bearer <token>", {"WWW-Authenticate": "Bearer"})

    routes = APIRouter(prefix="/v1/admin", dependencies=[Depends(allowed)], tags=["admin"])

    @routes.post("/publish")
    async def publish(request: ManifestRequest) -> dict[str, Any]:
        """Answer from a manifest, once every replica has acknowledged it."""
        return await backend.admin("publish", manifest=request.manifest)

    @routes.post("/rollback")
    async def rollback(request: ManifestRequest) -> dict[str, Any]:
        """Return to an older manifest, as a new generation."""
        return await backend.admin("rollback", manifest=request.manifest)

    @routes.post("/forget")
    async def forget(request: ForgetRequest) -> dict[str, Any]:
        """Remove a domain from the model, and with `erase` from the disk."""
        return await backend.admin("forget", **request.model_dump())

    return routes
