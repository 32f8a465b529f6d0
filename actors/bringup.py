"""Bring an endpoint up in the Ray that is connected: deploy, publish, wait until HTTP answers."""

from __future__ import annotations

import errno
import os
import socket
import time
import urllib.error
import urllib.request
from typing import Any

import ray

from archipelago.actors.http.admin import TOKEN, token_hash
from archipelago.actors.loopback import is_loopback, url_of
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.records.group import read_card
from archipelago.pipeline.serving.model import run_settings
from archipelago.pipeline.serving.pointer import newest_pointer
from archipelago.pipeline.settings import ServingSettings, Settings
from archipelago.pipeline.store import RunFolder

READY_S = 120.0


def bring_up(settings: Settings) -> str:
    """Deploy, publish what there is to publish, and wait until HTTP answers; returns the URL."""
    from ray import serve

    from archipelago.actors.endpoint import application

    assert settings.run_dir is not None
    serving, run = settings.serving, RunFolder.open(settings.run_dir)
    run_settings(run.read())
    for ref in run.groups.list():
        dense = [task["name"] for task in read_card(run, ref)["tasks"] if task["kind"]]
        if dense:
            raise UserError(
                f"run_dir={settings.run_dir}: group '{ref.name}' was learned for dense tasks"
                f" ({', '.join(dense)}): only domains with classes are served"
            )
    _start_http(serving)
    token, device = token_hash(os.environ.get(TOKEN)), settings.cluster.device
    app = application(settings.run_dir, serving, token, device, settings.tracking)
    serve.run(app, name=serving.name, route_prefix="/")
    if settings.publish == "auto" or not newest_pointer(run).generation:
        publish_newest(run, serving)
    url = url_of(serving.host, serving.port)
    wait_ready(url)
    return url


def publish_newest(run: RunFolder, serving: ServingSettings) -> None:
    """Answer from the newest manifest, unless somebody went back to an older one on purpose."""
    from archipelago.actors.endpoint import publisher_of
    from archipelago.pipeline.serving.pointer import history

    versions, past = run.models.versions(), history(run)
    if not versions or (past and past[-1]["reason"] == "rollback"):
        return
    answer = publisher_of(serving.name).publish.remote(None).result()
    if answer["code"] != 200:
        raise UserError(f"run_dir: {answer['message']}")


def wait_ready(url: str, patience_s: float = READY_S) -> None:
    """Until the endpoint answers; RuntimeError when it does not."""
    deadline = time.monotonic() + patience_s
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is this machine
    while time.monotonic() < deadline:
        try:
            with direct.open(f"{url}/v2/health/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer within {patience_s:g} s")


def _start_http(serving: ServingSettings) -> None:
    """Serve's HTTP on the wanted port; the first application fixes it for the whole cluster."""
    from ray import serve
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        options = client.http_config
        if options.port != serving.port:
            raise UserError(
                f"serving.port={serving.port}: Serve runs on this cluster already, on port"
                f" {options.port}; use that one"
            )
        return
    if is_loopback(ray.util.get_node_ip_address()) or is_loopback(serving.host):
        check_listening(serving.host, serving.port)
    serve.start(http_options={"host": serving.host, "port": serving.port})


def check_listening(host: str, port: int) -> None:
    """Raises UserError where this machine cannot listen there, with the reason."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(
            f"serving.host={host}: is no name or address of this machine; give 127.0.0.1, ::1 or"
            " 0.0.0.0"
        ) from None
    family, kind, protocol, _, address = found[0]
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"serving.port={port}: is in use on this machine; choose another"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UserError(
                f"serving.port={port}: is kept for the system; choose one from 1024 on"
            ) from None
        raise UserError(
            f"serving.host={host}: this machine cannot listen there"
            f" ({os.strerror(error.errno or 0).lower()}); give 127.0.0.1 or 0.0.0.0"
        ) from None
