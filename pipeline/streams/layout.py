"""How a folder of images is laid out: which folders are splits, which are classes, what is neither.

Every file below a domain is used, left out by name, or told of in a note.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.domain import SPLITS
from archipelago.pipeline.streams.files import Entry, Root, is_text, shown
from archipelago.pipeline.streams.names import composed
from archipelago.pipeline.streams.walk import some, walk

FACTS = "domain.json"
# What people call the folders of a split; compared without regard to case.
TRAINING = ("train", "training", "trainval")
TESTING = ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout")


@dataclass
class Layout:
    """The classes of a domain and where their files lie, as paths below the domain's folder.

    Attributes:
        ready: whether there are folders of splits; else all files belong to the split "".
        classes: names of the class folders, composed, sorted; escaped where they are no UTF-8.
        unreadable: class -> path of its folder, of those whose names are no UTF-8.
        notes: what a person should know, a line each.
        faults: (split, file, reason) of what cannot be used.
        found: files by split and class.
        roots: the folders of ready splits.
    """

    ready: bool
    classes: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    found: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that files belong to."""
        return SPLITS if self.ready else ("",)

    def files(self, split: str, name: str) -> list[str]:
        """The files of one class in one split."""
        return self.found.get((split, name), [])

    def split_of(self, path: str) -> str:
        """The split that a path belongs to."""
        head = path.partition("/")[0]
        return next((split for split, root in self.roots.items() if root == head), "")


def read_layout(folder: Root, name: str, train: str, test: str) -> Layout:
    """What lies in a domain's folder.

    Args:
        folder: the domain's.
        name: the domain's.
        train: name of the folder of the training split.
        test: name of that of the test split.

    Raises:
        UserError: it is no layout of classes, with the mend.
    """
    entries = folder.entries()
    inside = [entry.name for entry in entries if entry.folder and not entry.junk]
    roots = {"train": _named(inside, train), "test": _named(inside, test)}
    found = {split: root for split, root in roots.items() if root is not None}
    layout = Layout(len(found) == len(SPLITS))
    if layout.ready:
        layout.roots = found
        _note_unused(folder, layout, set(inside) - set(found.values()), test)
        folders = [(split, root, folder.entries(root)) for split, root in found.items()]
    else:
        _refuse_half(folder, inside, roots, {"train": train, "test": test})
        folders = [("", "", entries)]
    _note_files(folder, layout, [("", entries)] if layout.ready else [])
    junk = _junk("", entries) if layout.ready else []
    for split, root, items in folders:
        junk += _read_classes(folder, layout, split, root, items)
    extra = sorted({n for s, n in layout.found if s == "test"} - set(layout.classes))
    if extra:
        near = [n for n in layout.classes if n.casefold() == extra[0].casefold()]
        hint = f"; there is {near[0]}, names must be equal" if near else ""
        where = folder.shown(f"{found['test']}/{extra[0]}")
        raise UserError(f"{where}: no such class in {found['train']}/{hint}")
    if junk:
        layout.notes.append(f"what systems and tools left is skipped: {some(junk)}")
    return layout


def _named(inside: list[str], wanted: str) -> str | None:
    """The folder of that name, or the only one that differs in case."""
    if wanted in inside:
        return wanted
    alike = [name for name in inside if name.casefold() == wanted.casefold()]
    return alike[0] if len(alike) == 1 else None


def _refuse_half(
    folder: Root, inside: list[str], roots: dict[str, str | None], options: dict[str, str]
) -> None:
    """Refuse folders of splits that do not make a pair: they would be taken for classes."""
    called = [n for n in inside if n.casefold() in (*TRAINING, *TESTING) or n in roots.values()]
    splits = [n for n in called if called == inside or _holds_folders_only(folder, n)]
    if not splits:
        return
    missing = [split for split in SPLITS if roots[split] is None]
    wanted = {"train": TRAINING, "test": TESTING}
    hints = []
    for split in missing:
        for other in splits:
            if other not in roots.values() and other.casefold() in wanted[split]:
                hints.append(f"stream.options.{split}={other}")
                break
    lacking = " and ".join(f"{options[split]}/" for split in missing)
    verb = "is" if len(missing) == 1 else "are"
    there = " and ".join(f"{shown(name)}/" for name in splits)
    mend = f"rename it, or set {' '.join(hints)}" if hints else "add it, or rename what is there"
    raise UserError(
        f"{folder.shown()}: {there} {'are' if len(splits) > 1 else 'is'} there, {lacking} {verb} "
        f"not; {mend}"
    )


def _holds_folders_only(folder: Root, name: str) -> bool:
    entries = [entry for entry in folder.entries(name) if not entry.junk]
    return any(e.folder for e in entries) and all(e.folder for e in entries)


def _note_unused(folder: Root, layout: Layout, others: Iterable[str], test: str) -> None:
    for name in sorted(others):
        count = len(walk(folder, name).files)
        hint = ""
        if name.casefold() in TESTING and is_text(name):
            hint = f" (stream.options.test={name} would test on it instead of {test}/)"
        layout.notes.append(f"{shown(name)}/ is not used, its files are {count}{hint}")


def _note_files(folder: Root, layout: Layout, places: list[tuple[str, list[Entry]]]) -> None:
    """Files that lie in none of the class folders."""
    for place, entries in places:
        lost = [e.name for e in entries if not e.folder and not e.junk and e.name != FACTS]
        if lost:
            where = f"in {shown(place)}/ " if place else ""
            verb = "lies" if len(lost) == 1 else "lie"
            layout.notes.append(
                f"{len(lost)} file{'s' * (len(lost) > 1)} {where}{verb} outside of the class "
                f"folders, not used: {some(lost)}"
            )


def _read_classes(
    folder: Root, layout: Layout, split: str, root: str, entries: list[Entry]
) -> list[str]:
    """Take up the class folders of one split; returns the junk that is only skipped."""
    where = folder.shown(root)
    folders = [entry.name for entry in entries if entry.folder and not entry.junk]
    if not folders:
        loose = [e.name for e in entries if not e.folder and not e.junk and e.name != FACTS]
        held = f"{len(loose)} files but no class folders" if loose else "no class folders"
        raise UserError(f"{where}: holds {held}; a class is a folder of its own, {where}/NAME/")
    _note_files(folder, layout, [(root, entries)])
    junk = _junk(root, entries)
    forms: dict[str, list[str]] = {}
    nested: list[str] = []
    for name in folders:
        key = composed(shown(name))
        path = f"{root}/{name}" if root else name
        if not is_text(name):
            layout.unreadable[key] = path
        forms.setdefault(key, []).append(name)
        found = walk(folder, path)
        hidden = set(found.visible_junk)
        junk += [item for item in found.junk if item not in hidden]
        faults = [*found.faults, *((item, "left by a system, no image") for item in hidden)]
        layout.faults += [(split, shown(item), reason) for item, reason in sorted(faults)]
        layout.found.setdefault((split, key), []).extend(found.files)
        nested += [item for item in found.files if item.count("/") > path.count("/") + 1]
    if split != "test":
        layout.classes = sorted(forms)
    if twice := [key for key, names in forms.items() if len(names) > 1]:
        layout.notes.append(
            f"folders whose names differ in Unicode form only are one class each: {some(twice)}"
        )
    elif decomposed := [key for key, names in forms.items() if key != shown(names[0])]:
        layout.notes.append(
            f"names of class folders are in decomposed Unicode form, as a Mac writes them, and are "
            f"taken for the composed ones: {some(decomposed)}"
        )
    if nested:
        inner = dict.fromkeys(item.rpartition("/")[0] for item in nested)
        layout.notes.append(
            f"{len(nested)} files lie in subfolders and count for the class above: {some(inner)}"
        )
    return junk


def _junk(root: str, entries: list[Entry]) -> list[str]:
    """Paths of what is skipped among the entries of a folder; folders end in a slash."""
    names = [f"{entry.name}/" if entry.folder else entry.name for entry in entries if entry.junk]
    return [f"{root}/{name}" if root else name for name in names]
