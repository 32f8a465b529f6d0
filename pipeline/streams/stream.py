"""Open a stream: its domains in the order of learning, validated before anything is decoded."""

from __future__ import annotations

import re
from collections.abc import Sequence

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams.domain import SPLITS, Domain
from archipelago.pipeline.streams.files import is_text
from archipelago.pipeline.streams.groups import check_groups
from archipelago.pipeline.streams.names import composed
from archipelago.pipeline.streams.parts import tasks_of, whole_domains
from archipelago.pipeline.streams.registry import readers
from archipelago.pipeline.streams.targets import KINDS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
MOST = 20  # repeated names in one message


def open_stream(settings: StreamSettings, seed: int, dense: bool = False) -> list[Domain]:
    """The domains of `settings.order` (default: those of `settings.stages`, or all, alphabetical).

    With `stream.options.shots` they are parts of them, with `stream.options.steps` steps of one.

    Args:
        settings: the stream.
        seed: the run's.
        dense: whether who asks learns dense tasks; if not, a stream of such is refused.

    Raises:
        UserError: one line that names the key, domain or file, and the mend.
    """
    source = readers.get(settings.reader)(settings, seed)
    names = source.names()
    if not names:
        raise UserError(
            f"stream.root: no domains for reader {settings.reader!r} in {settings.root}"
        )
    order = list(names) if settings.order is None else settings.order
    if settings.stages is not None and settings.order is None:
        order = [task for stage in settings.stages for task in stage]
    if not order:
        raise UserError("stream.order: is empty; name at least one domain, or null for all")
    key = "stages" if settings.order is None and settings.stages is not None else "order"
    wanted = whole_domains(order, names, settings)
    for name in wanted:
        if name not in names:
            raise UserError(f"stream.{key}: no domain {name!r}; known are {', '.join(names)}")
        _check_name(name)
    for i, name in enumerate(order):
        if name in order[:i]:
            raise UserError(f"stream.{key}: {name!r} is listed twice")
    domains = [source.domain(name) for name in wanted]
    for domain in domains:
        check_domain(domain)
        if domain.kind is not None and not dense:
            raise UserError(
                f"stream.reader: {domain.name!r} of reader {settings.reader!r} is a dense task "
                f"({domain.kind}); the chosen method learns classes of images, take method=ase"
            )
    check_groups(domains, settings.options)
    return tasks_of(domains, order, settings, seed)


def check_domain(domain: Domain) -> None:
    """Refuse a domain that cannot be learned; raises UserError naming domain and field."""
    where = f"domain {domain.name!r}"
    _check_name(domain.name)
    if domain.kind is not None:
        _check_dense(domain, where)
    if domain.kind != "normals" and len(domain.classes) < 2:
        raise UserError(f"{where}: classes: needs at least 2, has {len(domain.classes)}")
    _check_classes(domain.classes, where)
    _check_text(domain, where)
    if not domain.templates and domain.kind is None:
        raise UserError(f"{where}: templates: needs at least one, such as 'a photo of a {{}}.'")
    for template in domain.templates:
        if "{}" not in template or set("{}") & set(template.replace("{}", "")):
            raise UserError(
                f"{where}: templates: {template!r} must hold {{}} for the class name and no other "
                "braces"
            )
    for split in SPLITS:
        if split not in domain.splits:
            raise UserError(f"{where}: has no {split} split")
        if domain.splits[split].count < 1:
            raise UserError(f"{where}: its {split} split has no rows")


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"domain {name!r}: use letters, digits and . _ + - in domain names")


def _check_classes(classes: Sequence[str], where: str) -> None:
    """Refuse blank names, and all that occur more than once, in one message."""
    numbers: dict[str, list[int]] = {}
    for i, name in enumerate(classes):
        if not name.strip():
            raise UserError(f"{where}: classes: number {i} is blank")
        numbers.setdefault(composed(name.strip()), []).append(i)
    twice = {name: found for name, found in numbers.items() if len(found) > 1}
    if twice:
        words = []
        for name, found in list(twice.items())[:MOST]:
            times = "twice" if len(found) == 2 else f"{len(found)} times"
            listed = ", ".join(str(i) for i in found[:-1])
            form = len({classes[i].strip() for i in found}) > 1
            differ = ", in two Unicode forms" if form else ""
            words.append(f"{name!r} occurs {times} (numbers {listed} and {found[-1]}{differ})")
        more = f"; and {len(twice) - MOST} more" if len(twice) > MOST else ""
        raise UserError(
            f"{where}: classes: {'; '.join(words)}{more}; "
            "class names must be unique within a domain"
        )


def _check_text(domain: Domain, where: str) -> None:
    """Refuse text that no file and no answer could hold: half of a surrogate pair."""
    for key, texts in (
        ("classes", domain.classes),
        ("templates", domain.templates),
        ("source", (domain.source,)),
        ("licence", (domain.licence,)),
    ):
        for i, text in enumerate(texts):
            if not is_text(text):
                raise UserError(f"{where}: {key}: number {i}, {text!r}, is not valid Unicode")


def _check_dense(domain: Domain, where: str) -> None:
    """A dense task must be a target of each split, of its own kind and number of classes."""
    if domain.kind not in KINDS:
        raise UserError(f"{where}: no kind {domain.kind!r}; known are {', '.join(KINDS)}")
    for split in domain.splits.values():
        for target in split.targets:
            if target.name == domain.name:
                if (target.kind, target.classes) != (domain.kind, len(domain.classes)):
                    raise UserError(
                        f"{where}: its {split.name} split holds {target.kind} of {target.classes} "
                        f"classes, not {domain.kind} of {len(domain.classes)}"
                    )
                break
        else:
            raise UserError(f"{where}: its {split.name} split holds no such target")
