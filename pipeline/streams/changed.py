"""Is the data of a learned domain still what it was learned from?

A group is frozen with its class list. Data that changed since would be measured against groups and
class lists of another time, so it is refused by name.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.cache import PreparedDomain
from archipelago.pipeline.streams.files import shown

MOST = 3  # changes told of one domain


def check_unchanged(
    cards: Iterable[Mapping[str, Any]], domains: Sequence[PreparedDomain], run_dir: str
) -> None:
    """Compare learned domains with what their cards, the groups' `task.json`, say of their data.

    Args:
        cards: of the groups that need not be learned again.
        domains: as prepared.
        run_dir: for the commands in the message.

    Raises:
        UserError: names each domain that changed, what changed, and what can be done.
    """
    known = {domain.name: domain for domain in domains}
    changed: dict[str, list[str]] = {}
    for card in cards:
        for part in card["tasks"]:
            domain = known.get(part["name"])
            if domain is not None and (found := _changes(part, domain)):
                changed[domain.name] = found
    if not changed:
        return
    words = "; ".join(f"{name}: {', '.join(found[:MOST])}" for name, found in changed.items())
    first, where = next(iter(changed)), shlex.quote(f"run_dir={run_dir}")
    raise UserError(
        f"stream: data changed since it was learned ({words}); put the old data back, give the new "
        f"data a domain of its own, or use another run_dir; python jobs/forget.py {where} "
        f"task={first} takes away what was learned from the old"
    )


def _changes(card: Mapping[str, Any], domain: PreparedDomain) -> list[str]:
    """What differs, in words; empty where nothing does."""
    found = []
    before, now = list(card["classes"]), list(domain.classes)
    gone = [name for name in before if name not in now]
    come = [name for name in now if name not in before]
    if come:
        found.append(f"class {shown(come[0])!r} was added")
    if gone:
        found.append(f"class {shown(gone[0])!r} is gone")
    if before != now and not come and not gone:
        found.append("its classes are in another order")
    if list(card["templates"]) != list(domain.templates):
        found.append("its templates are others")
    counts = card["counts"]
    for split, digest in card["digests"].items():
        if domain.digests.get(split) == digest:
            continue
        old, new = counts.get(split), domain.counts.get(split)
        told = f", {old} and now {new}" if old != new else ""
        found.append(f"its {split} images are others{told}")
    return found
