"""Rows that belong together, as the frames of one video do: they never stand on both sides of a
split, or a model would be judged by near-copies of what it learned.

`stream.options.group=COLUMN` names a column of a table: rows with an equal value are a group.
`stream.options.group_pattern=REGEX` is searched for in the names of the rows: a group is named by
its first capture group, or by the whole match without one. Rows without a value, or whose name
does not match, are groups of their own. Only training splits have groups.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.domain import Domain
from archipelago.pipeline.streams.walk import some

log = logging.getLogger(__name__)

BY_COLUMN, BY_PATTERN = "group", "group_pattern"
LACKING = {
    BY_COLUMN: "this reader has no columns to group rows by; leave it out",
    BY_PATTERN: "this reader has no names of rows to match; leave it out",
}
"""What a reader lacks that does not offer one of the options."""


class Grouping(NamedTuple):
    """How rows are told to belong together; neither = they do not."""

    column: str | None = None
    pattern: re.Pattern[str] | None = None

    @property
    def key(self) -> str:
        """The option that was given."""
        return f"stream.options.{BY_COLUMN if self.column is not None else BY_PATTERN}"

    def of_names(self, names: Iterable[str | None]) -> tuple[int, ...] | None:
        """Group of each row by its name; None where no name matches."""
        assert self.pattern is not None
        found = [_matched(self.pattern, name) for name in names]
        return numbered(found) if any(value is not None for value in found) else None


def grouping(options: Mapping[str, Any]) -> Grouping:
    """Read both options.

    Raises:
        UserError: both are given, or one is no text, or the pattern is no regular expression.
    """
    column, pattern = options.get(BY_COLUMN), options.get(BY_PATTERN)
    for key, value in ((BY_COLUMN, column), (BY_PATTERN, pattern)):
        if value is not None and (not isinstance(value, str) or not value):
            what = "name of a column" if key == BY_COLUMN else "regular expression"
            raise UserError(f"stream.options.{key}: {value!r} is no {what}; give one, or null")
    if column is not None and pattern is not None:
        raise UserError(
            f"stream.options.{BY_PATTERN}: stream.options.{BY_COLUMN}={column} says already which "
            "rows belong together; give one of the two"
        )
    try:
        return Grouping(column, None if pattern is None else re.compile(pattern))
    except re.error as error:
        raise UserError(
            f"stream.options.{BY_PATTERN}: {pattern!r} is no regular expression: {error}"
        ) from None


def of_column(where: str, column: str, values: Sequence[pa.ChunkedArray]) -> tuple[int, ...]:
    """Group of each row by its value, null = alone.

    Args:
        where: the table, for messages.
        column: name of the column.
        values: the column, in one or more pieces.

    Raises:
        UserError: the values cannot be compared.
    """
    for piece in values:
        if pa.types.is_nested(piece.type):
            raise UserError(
                f"stream.options.{BY_COLUMN}: column {column!r} of {where} holds {piece.type}; "
                "name one of plain values, such as numbers or text"
            )
    return numbered(value for piece in values for value in piece.to_pylist())


def numbered(values: Iterable[Hashable | None]) -> tuple[int, ...]:
    """A number for each distinct value in the order they come; None and NaN are never equal."""
    known: dict[Hashable, int] = {}
    found, count = [], 0
    for value in values:
        alone = value is None or value != value  # NaN
        number = count if alone else known.setdefault(value, count)
        count += number == count
        found.append(number)
    return tuple(found)


def shared(groups: Sequence[int] | np.ndarray | None) -> np.ndarray | None:
    """(N,) int64 group of each row; None where every row is alone, as if there were no groups."""
    if groups is None or len(np.unique(groups)) == len(groups):
        return None
    return np.asarray(groups, np.int64)


def check_groups(domains: Sequence[Domain], options: Mapping[str, Any]) -> None:
    """Refuse options that group nothing, and say of which domains they group nothing.

    Raises:
        UserError: no domain has the column, or a name that matches.
    """
    chosen = grouping(options)
    if chosen == Grouping():
        return
    lacking = [domain.name for domain in domains if domain.splits["train"].groups is None]
    wanted = f"a column {chosen.column!r}"
    if chosen.pattern is not None:
        wanted = f"a name that matches {chosen.pattern.pattern!r}"
    if len(lacking) == len(domains):
        where = some(lacking)
        raise UserError(
            f"{chosen.key}: no training row of {where} has {wanted}; mend it, or give null"
        )
    for domain in domains:
        if domain.name in lacking:
            why = f"no training row has {wanted}"
        elif shared(domain.splits["train"].groups) is None:
            why = "no two rows belong together"
        else:
            continue
        log.warning("%s: %s: %s; each row stands alone", domain.name, chosen.key, why)


def _matched(pattern: re.Pattern[str], name: str | None) -> str | None:
    found = None if name is None else pattern.search(name)
    if found is None:
        return None
    return found.group(1) if pattern.groups else found.group()
