"""Decode every domain once into memory-mapped tables; bad rows go into a quarantine table."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.pace import Pace
from archipelago.pipeline.settings import ClusterSettings
from archipelago.pipeline.streams.domain import Domain, Split
from archipelago.pipeline.streams.entries import Entries, entry_key
from archipelago.pipeline.streams.execution import run_jobs
from archipelago.pipeline.streams.parts import select
from archipelago.pipeline.streams.quarantine import left_out_rows, quarantine_rows, write_quarantine
from archipelago.pipeline.streams.remote import RemoteEntries, entries_of
from archipelago.pipeline.streams.shards import ShardJob, ShardResult
from archipelago.pipeline.streams.table import ImageTable

__all__ = ["ImageTable", "PreparedDomain", "prepare"]

log = logging.getLogger(__name__)

SHARD_OVERHEAD = 8192  # bytes of Arrow framing and index columns allowed for, per shard


@dataclass(frozen=True)
class PreparedDomain:
    """A domain whose images are decoded, and its targets if it is a dense task.

    Attributes:
        tables: split -> path or address for `ImageTable.open` (`DenseTable.open`) on any node.
        digests: split -> content digest of the source, or of the part that the task has of it.
        counts: split -> usable images; of a dense task, those that have its target.
        quarantined: rows of all splits that could not be used, and files that never became one;
            of tasks that share a domain the first one tells of them.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    source: str
    licence: str
    tables: Mapping[str, str]
    digests: Mapping[str, str]
    counts: Mapping[str, int]
    quarantined: int
    kind: str | None = None


def prepare(
    domains: list[Domain],
    *,
    size: int,
    run: str,
    cache_dir: str,
    cache_gib: float,
    cluster: ClusterSettings,
    max_pixels: int,
    use_ray: bool,
) -> list[PreparedDomain]:
    """Decode what the cache lacks and say where everything is.

    Args:
        domains: from `open_stream`.
        size: S; shortest side to S, centre crop S x S.
        run: run folder (path or URI) for `quarantine-<task>.parquet`, written where rows are bad.
        cache_dir: folder that every node sees, or the address of one in an object store.
        cache_gib: disk budget; least recently used entries of other streams make room.
        cluster: resources of a decoding task (`data`) and the no-progress timeout.
        max_pixels: images whose header declares more are quarantined undecoded.
        use_ray: decode in one Ray Data execution over the cluster, else in this process.

    Raises:
        UserError: a source cannot be read, a split has no usable row, or the budget is too small.
    """
    entries = entries_of(cache_dir)
    splits = {
        entry_key(split, size, max_pixels): (domain, split)
        for domain in domains
        for split in domain.splits.values()
    }
    missing = {key: pair for key, pair in splits.items() if entries.find(key) is None}
    need = sum(_bytes_of(split, size) for _, split in missing.values())
    entries.make_room(need, int(cache_gib * 2**30), keep=set(splits))
    free = entries.free()
    if free is not None and need > free:
        raise UserError(
            f"cluster.cache_dir: {cache_dir} has {free / 2**30:.3g} GiB free; "
            f"the decoded images need {need / 2**30:.3g} GiB"
        )
    if missing:
        _decode(missing, entries, size, max_pixels, cluster, use_ray)
    prepared, told = [], set()
    for domain in domains:
        source = domain.name if domain.part is None else domain.part.domain
        prepared.append(_prepared(domain, entries, size, max_pixels, run, source not in told))
        told.add(source)
    return prepared


def _decode(
    missing: dict[str, tuple[Domain, Split]],
    entries: Entries | RemoteEntries,
    size: int,
    max_pixels: int,
    cluster: ClusterSettings,
    use_ray: bool,
) -> None:
    """Fill the missing entries; each one is committed as soon as its last shard is there."""
    staged: dict[str, Any] = {}
    jobs: list[ShardJob] = []
    homes: list[str] = []
    results: dict[str, list[ShardResult]] = {}
    try:
        for key, (domain, split) in missing.items():
            staged[key], results[key] = entries.begin(key), []
            folder = str(staged[key].folder)
            for i, chunk in enumerate(split.chunks):
                file, classes = f"{i:05d}.arrow", domain.labels
                jobs.append(ShardJob(chunk, folder, file, classes, size, max_pixels, split.targets))
                homes.append(key)
        log.info("decoding %d splits in %d shards", len(missing), len(jobs))
        pace = Pace("decoding", sum(split.count for _, split in missing.values()))
        with closing(run_jobs(jobs, cluster, use_ray)) as outcomes:
            for position, outcome in outcomes:
                key = homes[position]
                domain, split = missing[key]
                if isinstance(outcome, str):
                    raise UserError(f"{domain.name}, {split.name} split: cannot decode: {outcome}")
                results[key].append(outcome)
                pace.step(outcome.rows + len(outcome.bad))
                if len(results[key]) == len(split.chunks):
                    entries.commit(key, staged[key], _marker(split, size, results[key]))
    finally:
        for staging in staged.values():
            staging.drop()


def _marker(split: Split, size: int, results: list[ShardResult]) -> dict[str, Any]:
    results = sorted(results, key=lambda result: result.file)
    rows = sum(result.rows for result in results)
    bad = [pair for result in results for pair in result.bad]
    if rows + len(bad) != split.count:
        raise UserError(
            f"{split.name} split: its chunks hold {rows + len(bad)} rows, not the {split.count} "
            "stated; the source changed while it was read, run again"
        )
    shards = [{"file": r.file, "rows": r.rows, "bytes": r.bytes} for r in results]
    facts = {"schema": 1, "digest": split.digest, "size": size}
    marker = {**facts, "rows": rows, "bad": bad, "shards": shards}
    if split.targets:
        marker["targets"] = [asdict(target) for target in split.targets]
        marker["bad_targets"] = {
            target.name: [pair for result in results for pair in result.bad_targets[target.name]]
            for target in split.targets
        }
    return marker


def _prepared(
    domain: Domain,
    entries: Entries | RemoteEntries,
    size: int,
    max_pixels: int,
    run: str,
    tell: bool,
) -> PreparedDomain:
    """Where a domain's images are; with `tell`, those that cannot be used go into a table."""
    tables, counts, digests, bad = {}, {}, {}, left_out_rows(domain)
    for name, split in domain.splits.items():
        key = entry_key(split, size, max_pixels)
        marker = entries.find(key)
        if marker is None:
            raise UserError(
                f"cluster.cache_gib: {domain.name} was evicted by another run; raise it"
            )
        rows = marker["bad"]
        lacking = marker["bad_targets"][domain.name] if domain.kind else []
        tables[name], counts[name] = str(entries.path(key)), marker["rows"] - len(lacking)
        digests[name] = split.digest
        bad += quarantine_rows(domain, split, [(row, reason) for row, reason in rows + lacking])
        chosen = select(domain, split, ImageTable.open(tables[name]))
        if chosen is not None:
            tables[name] = entries.select(key, chosen)
            counts[name], digests[name] = len(chosen.rows), chosen.digest
    if bad and tell:
        write_quarantine(bad, run, f"quarantine-{domain.name}.parquet")
    for name, count in counts.items():
        if not count:
            mine = [row for row in bad if row["split"] == name and row["row"] is not None]
            words = f"{mine[0]['file'] or ''} {mine[0]['reason']}" if mine else "of its classes"
            reason = " ".join(words.split())
            raise UserError(f"{domain.name}: no row of its {name} split is usable: {reason}")
    return PreparedDomain(
        *(domain.name, domain.classes, domain.templates, domain.source, domain.licence),
        *(tables, digests, counts, len(bad) if tell else 0, domain.kind),
    )


def _bytes_of(split: Split, size: int) -> int:
    row = size * size * 3 + 16 + sum(target.bytes(size) for target in split.targets)
    return split.count * row + len(split.chunks) * SHARD_OVERHEAD
