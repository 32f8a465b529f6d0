"""What an operating system refuses, in one line: a disk that is full, a name that is too long.

Errors come wrapped: by Ray (`cause`), by Python (`__cause__`), and as text alone from workers and
from libraries that are not Python's (`OSError: [Errno 28] ...`, `os error 28`, `Os { code: 28`).
"""

from __future__ import annotations

import errno
import os
import re

LONGEST = 200
FULL = "free some space, then the same command continues"
MENDS = {
    errno.ENOSPC: ("the disk is full", FULL),
    errno.EDQUOT: ("the quota of this disk is used up", FULL),
    errno.EFBIG: ("the file is larger than is allowed here", "raise `ulimit -f`"),
    errno.EROFS: ("the file system is read-only", "choose another place"),
    errno.EACCES: ("no permission", "change its owner or mode, or choose another place"),
    errno.EPERM: ("not permitted", "change its owner or mode, or choose another place"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ENOTDIR: ("a part of it is a file, not a folder", "choose another place"),
    errno.EEXIST: ("is there already, and no folder", "choose another place, or move it away"),
    errno.EISDIR: ("is a folder, not a file", "name a file, or move it away"),
    errno.ENOENT: ("does not exist, or is a link that leads nowhere", "correct it or make it"),
    errno.ELOOP: ("its links go round in a circle", "mend them, or choose another place"),
    errno.EMFILE: ("too many files are open", "raise `ulimit -n`"),
    errno.ENFILE: ("too many files are open on this machine", "end other programs"),
    errno.ENOMEM: ("there is not enough memory", "lower batch sizes, or end other programs"),
    errno.ENXIO: ("is a device or a pipe, not a file", "name a file"),
    errno.EIO: ("the device cannot be read or written", "choose another disk"),
    errno.ESTALE: ("the network file system lost it", "mount it anew, then the same command"),
    errno.ETXTBSY: ("is in use as a program", "choose another place"),
}
"""What an error means, and what to do about it."""

IN_TEXT = re.compile(r"\[errno (\d+)\]|\bos error (\d+)\b|\bOs \{ code: (\d+)\b", re.I)
PATH = re.compile(r"'(/[^']+)'")


def in_words(error: BaseException) -> str | None:
    """One line for an error of the operating system's, None for any other.

    What has no number of a mishap in `MENDS` is a defect or a failure, and not for these words.
    """
    for each in _chain(error):
        found = _number(each)
        if found is None:
            continue
        place = _place(each)
        if found == errno.ENOENT and not place:
            continue
        what, mend = MENDS[found]
        return f"{place}: {what}; {mend}" if place else f"{what}; {mend}"
    return None


def one_line(text: str) -> str:
    """`text` with what would break a line, or cannot be written, escaped."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown.encode("utf-8", "backslashreplace").decode()


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it came from, the outermost first."""
    found: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, BaseException) and each not in found:
            found.append(each)
            hidden = each.__suppress_context__
            waiting += [getattr(each, "cause", None), each.__cause__]
            waiting += [] if hidden else [each.__context__]
    return found


def _number(error: BaseException) -> int | None:
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        found = IN_TEXT.search(str(error))
        number = int(next(filter(None, found.groups()))) if found else None
    return number if number in MENDS else None


def _place(error: BaseException) -> str:
    """The file that an error names, in its attribute or in quotes."""
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if isinstance(name, str | bytes | os.PathLike):
        text = os.fsdecode(name)
    else:
        found = PATH.search(str(error))
        text = found[1] if found else ""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"
