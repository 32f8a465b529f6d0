"""Prompts, descriptions and calls of the multimodal model in MLflow.

Prompts are registered once a version; calls become traces, tagged by task and found again by tag.
Everything here is a projection of the run folder, as all tracking is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from archipelago.pipeline.identifiers.description import DESCRIBE_VERSION, PROMPTS, SCORE_VERSION
from archipelago.pipeline.tracking.runs import TAG, tags
from archipelago.pipeline.tracking.snapshot import Snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient

VERSIONS = {
    "describe": DESCRIBE_VERSION,
    "likelihood": SCORE_VERSION,
    "choice": SCORE_VERSION,
}
MOST_TRACES = 200  # of a run; the files in the run folder are bounded too


def register_prompts(client: MlflowClient) -> None:
    """Each prompt under `archipelago-<name>`, a new version whenever its text has changed."""
    for name, template in PROMPTS.items():
        full = f"archipelago-{name}"
        known = client.load_prompt(full, allow_missing=True)
        if known is None or known.template != template:
            # MLflow's own way to mark what is filled in: {{name}}
            client.register_prompt(full, template, tags=tags(version=VERSIONS[name]))


def log_traces(client: MlflowClient, experiment: str, snapshot: Snapshot) -> None:
    """Recorded calls that are not there yet, one trace each."""
    calls = snapshot.calls
    if not calls:
        return
    import mlflow

    mlflow.tracing.reset()  # else a process's traces all go where its first one went
    where = f"tags.`{TAG}key` = '{snapshot.key}'"
    found = client.search_traces([experiment], where, max_results=MOST_TRACES, include_spans=False)
    known = {trace.info.tags.get(f"{TAG}call") for trace in found}
    for name, call in list(calls.items())[:MOST_TRACES]:
        if name not in known:
            _log_trace(client, experiment, snapshot, name, call)


def _log_trace(
    client: MlflowClient, experiment: str, snapshot: Snapshot, name: str, call: dict[str, Any]
) -> None:
    began = int(call["began"] * 1e9)
    span = client.start_trace(
        f"{call['kind']} {call['task']}".strip(),
        span_type="LLM",
        inputs=json.dumps(call["asked"]),
        attributes={"model": call["model"]},
        tags=tags(key=snapshot.key, call=name, task=call["task"], kind=call["kind"]),
        experiment_id=experiment,
        start_time_ns=began,
    )
    end = began + int(call["seconds"] * 1e9)
    client.end_trace(span.trace_id, outputs=json.dumps(call["answer"]), end_time_ns=end)
