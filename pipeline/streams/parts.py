"""Few images of each class, and classes in steps: tasks that have a part of a domain.

`stream.options.shots=K` leaves K training images of each class; the test split stays whole.
`stream.options.steps=N` cuts the classes of the stream's one domain into N tasks (class-incremental
learning, CIL). Which images and which classes these are follows from the run's seed and the
domain's name alone, not from the other option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams.domain import Domain, Part, Split
from archipelago.pipeline.streams.draws import draws, rank_in_class
from archipelago.pipeline.streams.groups import shared
from archipelago.pipeline.streams.selection import Selection
from archipelago.pipeline.streams.table import ImageTable


class Protocol(NamedTuple):
    """What `stream.options` say of parts; None = the whole."""

    shots: int | None
    steps: int | None


def protocol(options: Mapping[str, Any]) -> Protocol:
    """Read both options; raises UserError where one is no number of things."""
    for key, words in (("shots", "training images of each class"), ("steps", "steps of classes")):
        value = options.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(
                f"stream.options.{key}: {value!r} is no number of {words}; give 1 or more, or null"
            )
    return Protocol(options.get("shots"), options.get("steps"))


def step_names(domain: str, steps: int) -> list[str]:
    """Names of the tasks that a domain is cut into: their alphabetical order is that of steps."""
    width = max(2, len(str(steps)))
    return [f"{domain}-{step:0{width}d}" for step in range(1, steps + 1)]


def whole_domains(
    order: Sequence[str], names: Sequence[str], settings: StreamSettings
) -> list[str]:
    """The domains that the tasks in `order` are, or are steps of.

    Args:
        order: tasks as a person listed them.
        names: of all domains on offer.
        settings: of the stream.

    Raises:
        UserError: there are steps, and more than one domain.
    """
    steps = protocol(settings.options).steps
    if steps is None:
        return list(order)
    source = {step: name for name in names for step in step_names(name, steps)}
    source |= {name: name for name in names}
    domains = list(dict.fromkeys(source.get(task, task) for task in order))
    if len(domains) > 1 or (len(order) > 1 and domains[0] in order):
        raise UserError(
            f"stream.options.steps={steps}: cuts one domain into tasks, and stream.order holds "
            f"[{', '.join(order)}]; give the domain alone, as stream.order=[{domains[0]}]"
        )
    return domains


def tasks_of(
    domains: Sequence[Domain], order: Sequence[str], settings: StreamSettings, seed: int
) -> list[Domain]:
    """The tasks of a stream: its domains, or parts of them where the options ask for these.

    Args:
        domains: of the stream, `whole_domains(order)`.
        order: the domains, or steps of one.
        settings: of the stream.
        seed: the run's.

    Raises:
        UserError: a dense task, or more steps than classes.
    """
    shots, steps = protocol(settings.options)
    if shots is None and steps is None:
        return list(domains)
    for domain in domains:
        if domain.kind is not None:
            key = "shots" if steps is None else "steps"
            raise UserError(
                f"stream.options.{key}: {domain.name!r} is a dense task, whose images are not those"
                " of classes; leave it out"
            )
    if steps is None:
        return [
            _part(domain, domain.name, range(len(domain.classes)), shots, seed)
            for domain in domains
        ]
    (domain,) = domains
    if steps > len(domain.classes):
        raise UserError(
            f"stream.options.steps={steps}: {domain.name!r} has {len(domain.classes)} classes; "
            "a step needs one or more"
        )
    mixed = np.argsort(draws(len(domain.classes), f"steps/{seed}/{domain.name}"), kind="stable")
    tasks = {
        name: _part(domain, name, sorted(part.tolist()), shots, seed)
        for name, part in zip(
            step_names(domain.name, steps), np.array_split(mixed, steps), strict=True
        )
    }
    return list(tasks.values()) if domain.name in order else [tasks[name] for name in order]


def _part(
    domain: Domain, name: str, classes: Sequence[int], shots: int | None, seed: int
) -> Domain:
    return replace(
        domain,
        name=name,
        classes=tuple(domain.classes[number] for number in classes),
        part=Part(domain.name, len(domain.classes), tuple(classes), shots, seed),
    )


def select(domain: Domain, split: Split, table: ImageTable) -> Selection | None:
    """The rows of a decoded split that a task has, with their groups; None = all, each alone.

    Where there are more than `shots` training images of a class, those with the smallest random
    keys are taken; a row's key is its own, so a row that cannot be used changes no other choice.
    """
    classes = tuple(range(domain.labels)) if domain.part is None else domain.part.classes
    taken = _taken(domain.part, split, table)
    numbers = shared(split.groups)
    if numbers is None and taken.all() and len(classes) == domain.labels:
        return None
    rows = np.sort(table.rows[taken])
    groups = None if numbers is None else tuple(numbers[rows].tolist())
    return Selection(split.digest, tuple(rows.tolist()), classes, groups)


def _taken(part: Part | None, split: Split, table: ImageTable) -> np.ndarray:
    """(N,) bool."""
    if part is None:
        return np.ones(len(table), bool)
    taken = np.isin(table.labels, part.classes)
    if part.shots is not None and split.name == "train":
        count = int(table.rows.max(initial=-1)) + 1
        keys = draws(count, f"shots/{part.seed}/{part.domain}")[table.rows]
        taken &= rank_in_class(table.labels, keys) < part.shots
    return taken
