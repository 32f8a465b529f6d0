"""Remove what a run holds of a domain: its groups, features, images, quarantine and calls."""

from __future__ import annotations

from collections.abc import Sequence

from archipelago.pipeline.store import Folder, GroupRef, RunFolder
from archipelago.pipeline.streams.remote import drop_copies
from archipelago.pipeline.streams.selection import file_name


def erase_files(
    run: RunFolder, task: str, stage: int, superseded: Sequence[GroupRef], digests: Sequence[str]
) -> list[str]:
    """Remove what the run holds of a domain; returns the names that are gone.

    Args:
        run: locked by the caller.
        task: the domain, or the name of the stage that learned several.
        stage: its number.
        superseded: groups that other ones replace, removed too.
        digests: of the domain's splits.
    """
    folder = run.folder
    removed = []
    for ref in run.groups.list():
        if ref.name == task or ref in superseded:
            run.groups.delete(ref)
            removed.append(f"groups/{ref.folder}")
    trees = [f"train/{stage:03d}-{task}"]
    trees += [n for n in folder.list("evaluation/functions/") if _of(n, f"{task}-")]
    cached = "cache/images/"  # in the run folder unless `cluster.cache_dir` says otherwise
    for digest in digests:
        trees += folder.list(f"{cached}{digest[:32]}")
        parts = [n for n in folder.list(cached) if folder.exists(f"{n}/{file_name(digest)}")]
        trees += parts  # images of a part lie among those of its domain
        if folder.local is None:
            drop_copies(digest)
    for name in trees:
        if folder.exists(name):
            folder.delete_tree(name)
            removed.append(name)
    files = [f"quarantine-{task}.parquet", f"identifier/traces/{stage:03d}-{task}.json"]
    files += [n for n in folder.list("evaluation/features/") if _of(n, f"{task}-")]
    for other in folder.list("evaluation/functions/"):
        files += [n for n in folder.list(f"{other}/") if _of(n, f"{task}-")]
    for name in files:
        if folder.exists(name):
            folder.delete(name)
            removed.append(name)
    _erase_calls(folder, task)
    return sorted(removed)


def _erase_calls(folder: Folder, task: str) -> None:
    """Recorded calls about a domain among those of a later evaluation; the others keep theirs.

    A file that cannot be read is removed whole.
    """
    traces = folder.child("identifier/traces")
    for name in traces.list():
        try:
            calls = traces.read_json(name)
            kept = [None if call and call["task"] == task else call for call in calls]
        except (ValueError, TypeError, KeyError):  # damaged: nobody can tell whom it is about
            traces.delete(name)
            continue
        if kept != calls:
            traces.write_json(name, kept)


def _of(name: str, start: str) -> bool:
    """Whether a file belongs to a domain: `<task>-<16 hex digits>...`, not a longer task's."""
    rest = name.rpartition("/")[2].removeprefix(start)
    return rest != name.rpartition("/")[2] and all(c in "0123456789abcdef" for c in rest[:16])


def disk_bytes(run: RunFolder) -> int | None:
    """Bytes of a local run folder; None elsewhere."""
    if run.folder.local is None:
        return None
    return sum(path.stat().st_size for path in run.folder.local.rglob("*") if path.is_file())
