"""Requests made from the OpenAPI document, valid and broken: nothing may end in a 500."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.config import SchemathesisConfig

from archipelago.actors.http.admin import token_hash
from archipelago.actors.http.app import create_app
from archipelago.actors.http.local import LocalBackend
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from tests.serving import refusal
from tests.unit.tiny_serving import SERVING

EXAMPLES = 12  # per operation


class WithAdmin(LocalBackend):
    """Admin that does nothing."""

    async def admin(self, verb: str, **arguments: Any) -> dict[str, Any]:
        return {"generation": 1}


@pytest.fixture(scope="module")
def api(served_run: RunFolder) -> Any:
    model = ServedModel(served_run.uri, SERVING, "cpu")
    app = create_app(WithAdmin(model), SERVING, token_hash("t"))
    return schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig())


def test_no_request_ends_in_a_500(api: Any) -> None:
    statuses: dict[str, set[int]] = {}
    for found in api.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Any) -> None:
            headers = {"Authorization": "Bearer t"} if "/admin/" in case.path else {}
            answer = case.call(headers=headers)
            assert answer.status_code < 500, answer.text
            statuses.setdefault(case.path, set()).add(answer.status_code)
            if answer.status_code >= 400:
                refusal(case.path, answer.status_code, answer.json())

        check()
    assert len(statuses) > 10 and {422} & statuses["/v1/classify"]
