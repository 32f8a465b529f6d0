"""Classes whose prompts are the same to the text tower: cut at its context, or lower-cased.

Such classes get one and the same feature: no image can be told from the other's by words.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.domain import Domain

log = logging.getLogger(__name__)

Tokenise = Callable[[Sequence[str]], Sequence[tuple[int, ...]]]
MOST = 5  # groups of classes in one message


def check_prompts(domains: Sequence[Domain], tokenise: Tokenise) -> None:
    """Warn of classes that read the same, by name.

    Args:
        domains: of the stream; dense tasks have no prompts.
        tokenise: captions to padded ids, as the text tower reads them.

    Raises:
        UserError: all classes of a domain read the same.
    """
    for domain in domains:
        if domain.kind is not None:
            continue
        groups = same_prompts(domain.classes, domain.templates, tokenise)
        if not groups:
            continue
        words = "; ".join(
            " = ".join(repr(_short(domain.classes[i])) for i in group[:3])
            + (f" and {len(group) - 3} more" if len(group) > 3 else "")
            for group in groups[:MOST]
        )
        more = f"; and {len(groups) - MOST} more" if len(groups) > MOST else ""
        row = tokenise([_prompt(domain, groups[0][0])])[0]
        why = f"cut at {len(row)} tokens" if row[-1] else "it knows no case"
        told = f"{domain.name}: classes that read the same to the text tower ({why}): {words}{more}"
        mend = "give shorter or other class names, such as in domain.json"
        if len(groups[0]) == len(domain.classes):
            raise UserError(f"{told}; {mend}")
        log.warning("%s; it cannot tell them apart: %s", told, mend)


def same_prompts(
    classes: Sequence[str], templates: Sequence[str], tokenise: Tokenise
) -> list[list[int]]:
    """Groups of two or more classes that are the same tokens in every template, by number."""
    groups = [list(range(len(classes)))]
    for template in templates:
        apart: list[list[int]] = []
        for group in groups:
            rows = tokenise([template.replace("{}", classes[i]) for i in group])
            found: dict[tuple[int, ...], list[int]] = {}
            for i, row in zip(group, rows, strict=True):
                found.setdefault(row, []).append(i)
            apart += [same for same in found.values() if len(same) > 1]
        groups = apart
    return groups if templates else []


def _prompt(domain: Domain, number: int) -> str:
    return domain.templates[0].replace("{}", domain.classes[number])


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:28]} ... {name[-28:]}"
