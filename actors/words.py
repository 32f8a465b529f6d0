"""A job's own words on the command line, typed and checked; all others are settings of a run.

    class Forget(Words):
        task: str = Field(description="the domain to forget")
        erase: bool = Field(False, description="true = nothing of it is left")

    own, rest = read_words(["task=pets", "training.steps=5"], Forget)

Text is taken as it stands, so that a path needs no quotes within quotes; everything else is YAML:
`erase=true`, `only=[a,b]`, `top_k=3`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from archipelago.pipeline.errors import UserError


class Words(BaseModel):
    """Base of a job's own words: a field each, its description for `--help`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


W = TypeVar("W", bound=Words)
SPECIAL = {"null", "true", "false", "nan", "inf", "on", "off", "yes", "no"}  # words that are more


def read_words(
    arguments: Sequence[str], own: type[W], *, settings: bool = True
) -> tuple[W, list[str]]:
    """A job's own words, and those that are settings.

    Args:
        arguments: as `key=value`.
        own: what the job itself takes.
        settings: whether others are passed on; else they are refused.

    Raises:
        UserError: a word that is missing, unknown or of the wrong kind, named with the mend.
    """
    given: dict[str, Any] = {}
    rest: list[str] = []
    for word in arguments:
        key, equal, value = word.partition("=")
        if equal and key in own.model_fields:
            given[key] = _value(key, value, own.model_fields[key].annotation)
        elif settings:
            rest.append(word)
        else:
            raise UserError(_unknown(word, list(own.model_fields)))
    try:
        return own.model_validate(given, strict=True), rest
    except ValidationError as error:
        raise UserError("; ".join(_said(problem, own) for problem in error.errors())) from None


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as plain Python, as the words of a command line.

    Args:
        settings: `{"stream": "folder", "stream.root": "/data", "stream.order": ["a", "b"]}`; groups
            come before single keys, as on a command line where the order does not matter.
    """
    return [f"{key}={_written(value)}" for key, value in settings.items() if key]


def _written(value: Any) -> str:
    """A value in the grammar of overrides; text is quoted where it could be taken for more."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_written(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    if re.fullmatch(r"[A-Za-z_/~][\w/.~-]*", text) and text.lower() not in SPECIAL:
        return text
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), text)
    return f'"{escaped}"'


def has_word(words: Sequence[str], key: str) -> bool:
    """Whether `key=...` is among them."""
    return any(word.startswith(f"{key}=") for word in words)


def _value(key: str, text: str, annotation: Any) -> Any:
    kinds = set(get_args(annotation)) or {annotation}
    if str in kinds:
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
        plain = text[1:-1] if quoted else text
        return None if type(None) in kinds and plain in ("", "null") else plain
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{key}={text}: not understood; write {key}=VALUE or {key}=[a,b]") from None


def _unknown(word: str, known: Sequence[str]) -> str:
    key, equal, _ = word.partition("=")
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; there is {', '.join(known)}"
    return f"{key}: unknown here{hint}" if equal else f"{word!r}: not understood; write key=value"


def _said(problem: Any, own: type[Words]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        about = own.model_fields[key].description
        return f"{key}: must be given, {key}=... ({about})" if about else f"{key}: must be given"
    kinds = {
        "bool_type": "true or false",
        "int_type": "a whole number",
        "float_type": "a number",
        "list_type": "a list: [a,b]",
        "string_type": "text",
        "greater_than": f"more than {problem.get('ctx', {}).get('gt')}",
        "greater_than_equal": f"at least {problem.get('ctx', {}).get('ge')}",
        "literal_error": str(problem.get("ctx", {}).get("expected")),
    }
    said = kinds.get(problem["type"], problem["msg"])
    return f"{key}={problem['input']}: expected {said}"
