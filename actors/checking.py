"""Would a run work? Settings, stream and images are looked at; nothing is learned."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from archipelago.actors.arguments import load_settings, reference_methods
from archipelago.actors.preflight import check_batch
from archipelago.pipeline.config import redacted
from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers.basis import find_basis
from archipelago.pipeline.identifiers.scorer import check_driver
from archipelago.pipeline.methods import method_class, method_options
from archipelago.pipeline.model.tokens import tokenizer_of
from archipelago.pipeline.planning import stages_of
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.store.documents import plain
from archipelago.pipeline.store.resume import check_continues
from archipelago.pipeline.streams import Domain, open_stream
from archipelago.pipeline.streams.decode import BadImage, decode
from archipelago.pipeline.streams.domain import Chunk, RawRow
from archipelago.pipeline.streams.prompts import check_prompts

SAMPLE = 48  # images of a split that are decoded
CHUNKS = 8  # places of a split they are taken from


@dataclass
class Looked:
    """What was found in one domain.

    Attributes:
        domain: as its source describes it.
        counts: rows by split.
        sampled: images that were tried.
        broken: why some of these cannot be used, each reason once, with how often.
    """

    domain: Domain
    counts: dict[str, int]
    sampled: int = 0
    broken: dict[str, int] = field(default_factory=dict)


@dataclass
class Checked:
    """What would be learned, and what is wrong; `faults` empty = the run can begin."""

    settings: Settings
    domains: list[Looked] = field(default_factory=list)
    stages: list[tuple[str, ...]] = field(default_factory=list)
    learned: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def check(words: Sequence[str], sample: int = SAMPLE) -> Checked:
    """Look at everything that a run with these words would meet.

    Args:
        words: settings as of the command line.
        sample: images of each split that are decoded.

    Raises:
        UserError: the settings cannot be read at all; what else is wrong stands in `faults`.
    """
    settings = load_settings(words)
    found = Checked(settings)

    def attempt(work: Callable[[], object]) -> object:
        try:
            return work()
        except (UserError, IntegrityError) as error:
            found.faults.append(str(error))
            return None

    methods = [settings.method.name, *reference_methods(settings)]
    attempt(lambda: method_options(settings.method))
    attempt(lambda: check_batch(settings))
    attempt(lambda: find_basis(settings.backbone))
    multimodal = isinstance(settings.identifier, MultimodalSettings)
    if multimodal and any(method_class(name).identifies() for name in methods):
        attempt(lambda: check_driver(settings.multimodal))
    dense = method_class(settings.method.name).dense
    domains = attempt(lambda: open_stream(settings.stream, settings.seed, dense))
    if isinstance(domains, list):
        tasks = [domain.name for domain in domains]
        stages = attempt(lambda: stages_of(settings, tasks))
        if isinstance(stages, list):
            found.stages = [stage.tasks for stage in stages]
        attempt(lambda: check_prompts(domains, tokenizer_of(settings.backbone)))
        found.domains = [look(domain, settings, sample) for domain in domains]
        found.faults += [fault for each in found.domains for fault in _unusable(each)]
    attempt(lambda: _against_run(found))
    return found


def look(domain: Domain, settings: Settings, sample: int) -> Looked:
    """Decode a few images of each split, from several places."""
    found = Looked(domain, {name: split.count for name, split in domain.splits.items()})
    for split in domain.splits.values():
        for row in _sampled(split.chunks, sample):
            found.sampled += 1
            why = _fault(row, settings.stream.max_pixels)
            if why is not None:
                found.broken[why] = found.broken.get(why, 0) + 1
    return found


def _sampled(chunks: Sequence[Chunk], sample: int) -> Iterator[RawRow]:
    if not chunks or not sample:
        return
    places = np.unique(np.linspace(0, len(chunks) - 1, min(len(chunks), CHUNKS)).round())
    each = -(-sample // len(places))
    for place in places.astype(int):
        rows = chunks[place].rows()
        try:
            yield from itertools.islice(rows, each)
        except OSError as error:
            yield RawRow(int(place), None, None, fault=str(error).splitlines()[0])


def _fault(row: RawRow, max_pixels: int) -> str | None:
    if row.fault:
        return row.fault
    if isinstance(row.image, np.ndarray):
        return None
    try:
        decode(row.image, max_pixels)
    except BadImage as error:
        return str(error)
    return None


def _unusable(found: Looked) -> Iterator[str]:
    if found.sampled and sum(found.broken.values()) == found.sampled:
        reason = max(found.broken, key=lambda why: found.broken[why])
        yield f"domain {found.domain.name!r}: none of {found.sampled} images can be used: {reason}"
    for split, count in found.counts.items():
        if count == 0:
            yield f"domain {found.domain.name!r}: the {split} split is empty; give it images"


def _against_run(found: Checked) -> None:
    """What a run that is there already has learned, and whether it may be continued like this."""
    run = RunFolder(str(found.settings.run_dir), read_only=True)
    if not run.exists():
        return
    document = run.read()
    found.learned = [ref.name for ref in run.completed_stages().values()]
    stages = [list(stage) for stage in found.stages]
    tasks = [task for stage in stages for task in stage]
    stream = {"tasks": tasks, "stages": stages}
    check_continues(document, plain(redacted(found.settings)), stream)
