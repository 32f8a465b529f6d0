"""What is compared: methods, streams, seeds and orders, and the folder that holds them all.

A *world* is a stream in one order under one seed; every method is a run in it. A method may carry
options of its own: `archipelago(group=off)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import method_class
from archipelago.pipeline.store import Folder

PLAN = "comparison.json"
NAMED = ("alphabetical", "reverse", "seeded", "given")
# What may differ when a comparison is continued: where and how fast it runs, not what comes out.
FREE = (
    "cluster",
    "tracking",
    "run_dir",
    "seed",
    "method",
    "serving",
    "serve",
    "publish",
    "stream.order",
)
LABEL = re.compile(r"([a-z0-9_]+)(?:\((.*)\))?")


@dataclass(frozen=True)
class Rival:
    """A method with options of its own; `label` is how tables call it."""

    label: str
    method: str
    options: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Its label as the name of a folder."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.label).strip("-")

    def words(self) -> list[str]:
        """Settings that choose it."""
        return [f"method={self.method}", *(f"method.options.{option}" for option in self.options)]


@dataclass(frozen=True)
class World:
    """One stream in one order under one seed."""

    stream: str
    seed: int
    order: str

    @property
    def folder(self) -> str:
        """Where its runs lie, below the comparison's folder."""
        where = "" if not self.stream else re.sub(r"[^A-Za-z0-9._]+", "-", self.stream).strip("-")
        return "/".join(part for part in ("worlds", where, f"{self.order}-{self.seed}") if part)


@dataclass(frozen=True)
class Plan:
    """Everything that is asked for.

    Attributes:
        at_once: how many worlds are worked on at a time.
        only: folder of the one world that this process is for; empty = all.
    """

    rivals: tuple[Rival, ...]
    streams: tuple[str, ...] = ("",)
    seeds: tuple[int, ...] = (0,)
    orders: tuple[str, ...] = ("alphabetical",)
    tune: bool = False
    at_once: int = 1
    only: str = ""

    def words(self) -> list[str]:
        """The words that say it, but for how many worlds at once."""
        lists = {
            "methods": [rival.label for rival in self.rivals],
            "streams": [stream for stream in self.streams if stream],
            "seeds": [str(seed) for seed in self.seeds],
            "orders": list(self.orders),
        }
        found = [f"{key}=[{','.join(items)}]" for key, items in lists.items() if items]
        return [*found, f"tune={'on' if self.tune else 'off'}"]

    def worlds(self) -> list[World]:
        """All of them, streams outermost."""
        return [
            World(stream, seed, order)
            for stream in self.streams
            for seed in self.seeds
            for order in self.orders
        ]

    def rivals_in(self, world: World) -> list[Rival]:
        """Who runs in a world: whoever learns everything at once knows no order."""
        first = world.order == self.orders[0]
        return [r for r in self.rivals if first or not method_class(r.method).joint]


def read_plan(words: Sequence[str]) -> tuple[Plan, list[str]]:
    """The plan that `methods=`, `streams=`, `seeds=`, `orders=`, `tune=` and `at_once=` name, and
    the other words.

    Raises:
        UserError: a list that is none, an unknown method or order, or something named twice.
    """
    given: dict[str, list[str]] = {}
    rest: list[str] = []
    single = {"tune": "off", "at_once": "1", "world": ""}
    for word in words:
        key, equal, value = word.partition("=")
        if equal and key in ("methods", "streams", "seeds", "orders"):
            given[key] = _items(key, value)
        elif equal and key in single:
            single[key] = value
        else:
            rest.append(word)
    taken = next((w for w in rest if w.startswith(("method=", "method.", "seed="))), None)
    if taken is not None:
        key = "seeds" if taken.startswith("seed") else "methods"
        raise UserError(f"{taken}: a comparison has lists; write {key}=[...] instead")
    rivals = tuple(_rival(item) for item in given.get("methods", ()))
    if not rivals:
        raise UserError("methods: name those to compare, as methods=[zero_shot,archipelago]")
    if single["tune"] not in ("on", "off"):
        raise UserError(f"tune={single['tune']}: write on or off")
    if not single["at_once"].isdigit() or int(single["at_once"]) < 1:
        raise UserError(f"at_once={single['at_once']}: give a number of worlds, 1 or more")
    seeds = tuple(_seed(item) for item in given.get("seeds", ("0",)))
    orders = tuple(given.get("orders", ("alphabetical",)))
    odd = next((order for order in orders if order not in NAMED), None)
    if odd is not None:
        raise UserError(f"orders: {odd!r} is none of {', '.join(NAMED)}")
    streams = tuple(given.get("streams", ("",)))
    at_once, tune = int(single["at_once"]), single["tune"] == "on"
    plan = Plan(rivals, streams, seeds, orders, tune, at_once, single["world"])
    if plan.only and plan.only not in {world.folder for world in plan.worlds()}:
        raise UserError(f"world={plan.only}: is none of this comparison's")
    return plan, rest


def _items(key: str, value: str) -> list[str]:
    """`[a,b(c=d,e=f)]` as its items, commas in brackets left alone."""
    if not (value.startswith("[") and value.endswith("]")):
        raise UserError(f"{key}={value}: expected a list: {key}=[a,b]")
    items = [item.strip() for item in re.split(r",(?![^(]*\))", value[1:-1])]
    if not all(items):
        raise UserError(f"{key}={value}: expected a list: {key}=[a,b]")
    twice = next((item for i, item in enumerate(items) if item in items[:i]), None)
    if twice is not None:
        raise UserError(f"{key}: {twice!r} is listed twice")
    return items


def _rival(item: str) -> Rival:
    found = LABEL.fullmatch(item)
    if found is None:
        raise UserError(f"methods: {item!r} is no method; write name or name(option=value)")
    method_class(found[1])
    options = tuple(part.strip() for part in (found[2] or "").split(",") if part.strip())
    return Rival(item, found[1], options)


def _seed(item: str) -> int:
    if not item.isdigit():
        raise UserError(f"seeds: {item!r} is no whole number")
    return int(item)


def ordered(names: Sequence[str], order: str, seed: int) -> list[str]:
    """The tasks of a stream in a named order; `given` leaves them as the settings have them."""
    if order == "given":
        return list(names)
    known = sorted(names)
    if order == "reverse":
        return known[::-1]
    if order == "seeded":
        return [known[i] for i in np.random.default_rng((seed, len(known))).permutation(len(known))]
    return known


def shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What all runs of a comparison have in common, of resolved and redacted settings."""
    flat: dict[str, Any] = {}

    def walk(value: Mapping[str, Any], prefix: str) -> None:
        for key, item in value.items():
            name = f"{prefix}{key}"
            if name in FREE:
                continue
            if isinstance(item, Mapping) and item:
                walk(item, f"{name}.")
            else:
                flat[name] = item

    walk(config, "")
    return flat


def claim(folder: Folder, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Take a folder for a comparison, or go on with the one that it holds.

    Args:
        folder: of the comparison.
        settings: what `shared` gives, by stream; further streams may join later.

    Raises:
        UserError: it holds a run, or a comparison of other settings.
    """
    if folder.exists("run.json"):
        raise UserError(
            f"run_dir={folder.shown()}: holds a run; a comparison wants a folder of its own"
        )
    stored = folder.read_json(PLAN)["settings"] if folder.exists(PLAN) else {}
    for stream, new in settings.items():
        old = stored.get(stream, new)
        for key in sorted({*old, *new}):
            if key in old and key in new and old[key] != new[key]:
                raise UserError(
                    f"{key}={new[key]}: {folder.shown()} holds a comparison with {key}={old[key]};"
                    " keep that, or give another run_dir"
                )
    joined = {key: {**stored.get(key, {}), **new} for key, new in settings.items()}
    if {**stored, **joined} != stored:
        folder.write_json(PLAN, {"settings": {**stored, **joined}})
