"""What a stage's card, its `task.json`, says of the data that it was learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.streams.cache import PreparedDomain


def data_card(domains: Sequence[PreparedDomain]) -> dict[str, Any]:
    """What a card says of a stage's data; of several tasks, each apart under `tasks` as well."""
    cards = [
        {
            "name": domain.name,
            "classes": list(domain.classes),
            "templates": list(domain.templates),
            "digests": dict(domain.digests),
            "counts": dict(domain.counts),
            **({} if domain.kind is None else {"kind": domain.kind}),
        }
        for domain in domains
    ]
    if len(cards) == 1:
        return {key: value for key, value in cards[0].items() if key != "name"}
    splits = domains[0].digests
    return {
        "tasks": cards,
        "classes": [name for domain in domains for name in domain.classes],
        "templates": [],
        "digests": {k: _digest(d.digests[k] for d in domains) for k in splits},
        "counts": {k: sum(domain.counts[k] for domain in domains) for k in domains[0].counts},
    }


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()
