"""How a learning run reaches its endpoint: in the same Ray, or over admin HTTP in another."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from archipelago.actors.arguments import load_settings
from archipelago.actors.http.admin import TOKEN, clean_token
from archipelago.actors.words import has_word
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.serving.pointer import history, newest_pointer
from archipelago.pipeline.settings import ServingSettings, Settings
from archipelago.pipeline.store import RunFolder

log = logging.getLogger("archipelago")

MARGIN_S = 30.0
LONGEST_TEST_S = 3600.0  # of dependents on their test splits, after a domain was forgotten


def publish_newest(run: RunFolder, settings: Settings) -> dict[str, Any] | None:
    """Publish the newest manifest, or leave it to a person; learning goes on whatever happens.

    Returns:
        What the publisher said, None where there was nothing to publish; noted in the journal.
    """
    versions = run.models.versions()
    if settings.serve == "off" or not versions:
        return None
    manifest = versions[-1]
    if settings.publish == "candidate":
        log.info("manifest %d waits to be promoted: POST /v1/admin/publish", manifest)
        run.journal.append("candidate", manifest=manifest)
        return None
    try:
        told = _publish(settings.serving, manifest)
    except UserError as error:
        told = {"code": 503, "message": str(error)}
    except Exception as error:  # nothing about an endpoint stops a run
        log.debug("publish", exc_info=error)
        told = {"code": 503, "message": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
    if told["code"] == 200:
        run.journal.append(
            "published", manifest=manifest, generation=told["generation"], seconds=told["seconds"]
        )
        log.info("manifest %d answers as generation %d", manifest, told["generation"])
    else:
        run.journal.append("not-published", manifest=manifest, reason=told["message"])
        log.warning("manifest %d is not published: %s", manifest, told["message"])
    return told


def _publish(serving: ServingSettings, manifest: int) -> dict[str, Any]:
    if serving.url:
        return {"code": 200, **post_admin(serving, "publish", {"manifest": manifest})}
    import ray

    if not ray.is_initialized():
        raise UserError("serving.url: this run uses no Ray; name the endpoint it publishes to")
    return _call(serving, manifest, "publish")


def _call(serving: ServingSettings, manifest: int, reason: str) -> dict[str, Any]:
    from archipelago.actors.endpoint import publisher_of

    call = publisher_of(serving.name).publish.remote(manifest, reason)
    return dict(call.result(timeout_s=serving.publish_timeout_s + MARGIN_S))


def publish_manifest(words: Sequence[str], manifest: int | None, reason: str) -> dict[str, Any]:
    """Publish or roll back, as a person asks for it.

    Args:
        words: settings with `run_dir`; `serving.url` names an endpoint elsewhere.
        manifest: which version; None = the newest, or for a rollback the one that answered before.
        reason: `publish` or `rollback`.

    Returns:
        What the publisher said, with `generation` and `manifest`.

    Raises:
        UserError: no run, no such manifest, no endpoint, or a refusal, in words.
    """
    settings = load_settings(words)
    if not has_word(words, "run_dir"):
        raise UserError("run_dir: must be given, run_dir=DIR (the run that answers)")
    run = RunFolder.open(str(settings.run_dir))
    chosen = manifest or (_before(run) if reason == "rollback" else _newest(run))
    if chosen not in run.models.versions():
        known = ", ".join(map(str, run.models.versions())) or "none"
        raise UserError(f"manifest={chosen}: the run has {known}")
    if settings.serving.url:
        told = post_admin(settings.serving, reason, {"manifest": chosen})
        return {"manifest": chosen, **told}
    from archipelago.actors.cluster import join_cluster

    with join_cluster(settings):
        told = _call(settings.serving, chosen, reason)
    if told["code"] != 200:
        raise UserError(f"manifest={chosen}: {told['message']}")
    return told


def _newest(run: RunFolder) -> int:
    versions = run.models.versions()
    if not versions:
        raise UserError(f"run_dir={run.folder.shown()}: has no model yet; learn a domain first")
    return versions[-1]


def _before(run: RunFolder) -> int:
    current = newest_pointer(run).manifest
    earlier = [note["manifest"] for note in history(run) if note["manifest"] != current]
    if not earlier:
        raise UserError("manifest: nothing else answered before; say which, manifest=N")
    return int(earlier[-1])


def post_admin(serving: ServingSettings, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    """One admin call to `serving.url`.

    Raises:
        UserError: no token, nobody there, or what the endpoint refuses, in its words.
    """
    token = clean_token(os.environ.get(TOKEN))
    if not token:
        raise UserError(f"{TOKEN}: set it to the endpoint's token")
    request = urllib.request.Request(
        f"{str(serving.url).rstrip('/')}/v1/admin/{verb}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    try:
        patience = serving.publish_timeout_s + (LONGEST_TEST_S if body.get("test") else MARGIN_S)
        with urllib.request.urlopen(request, timeout=patience) as answer:
            return _answer(serving, answer.read())
    except urllib.error.HTTPError as error:
        try:
            words = json.loads(error.read())["error"]["message"]
        except (ValueError, KeyError, TypeError):
            words = error.reason
        raise UserError(f"serving.url={serving.url}: {error.code}: {words}") from None
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"serving.url={serving.url}: no endpoint answers ({error})") from None


def _answer(serving: ServingSettings, data: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        answer = dict(json.loads(data))
        if isinstance(answer["generation"], int):
            return answer
    raise UserError(f"serving.url={serving.url}: what answers there is no archipelago endpoint")
