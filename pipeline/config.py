"""Settings of a run from `conf/` and the command line; every mistake becomes one line.

Files come first, the command line wins:

    settings = load(["stream=parquet", "stream.root=/data/domains", "training.steps=200"])
"""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.handbook import CONF, options
from archipelago.pipeline.identifier_settings import own_keys, owners
from archipelago.pipeline.redact import redacted
from archipelago.pipeline.settings import Settings, fields_of

ROOT = "sequence"
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")
__all__ = ["flatten", "known_groups", "load", "redacted", "stored_settings", "validate"]
MISSING = object()
_hydra_is_global = threading.Lock()


def load(overrides: Sequence[str] = ()) -> Settings:
    """The settings of a run: the files of `conf/`, then `overrides` such as `training.steps=10`.

    Leaves no global state behind and may be called any number of times, from any thread.

    Raises:
        UserError: one line that names the key and says the mend.
    """
    if not CONF.is_dir():
        raise UserError(f"{CONF}: not found; run from a checkout, where conf/ is")
    prepared = [_prepare(text) for text in overrides]
    with _hydra_is_global:
        try:
            with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
                composed = compose(ROOT, overrides=prepared)
            values = _plain(composed)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_composing(error)) from None
    return validate(values)


def validate(values: Mapping[str, Any]) -> Settings:
    """Settings from plain nested `values`, without silent conversions ("3" is not 3).

    Raises:
        UserError: one line with each offending key, the value given and what is expected.
    """
    for key, value in flatten(values).items():
        for leaf in _leaves(value):
            _check_leaf(key, leaf)
    try:
        # Through JSON, because only there strict mode takes a list for a tuple.
        return Settings.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise UserError(_explain(error, values)) from None


def stored_settings(document: Mapping[str, Any]) -> Settings:
    """The settings that a run was learned with; those of earlier versions are read too.

    Args:
        document: its run.json.

    Raises:
        UserError: as `validate`.
    """
    return validate(own_keys(document["config"]))


def flatten(values: BaseModel | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to leaf values: `{"training.steps": 400, ...}`; lists are leaves."""
    if isinstance(values, BaseModel):
        values = values.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _leaves(value: Any) -> Iterator[Any]:
    """What a value holds, lists and sections within lists taken apart; their names too."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _check_leaf(key: str, leaf: Any) -> None:
    """Raises UserError for what no setting can be: no number, or text that no file can hold."""
    if isinstance(leaf, float) and not math.isfinite(leaf):
        raise UserError(f"{key}={leaf}: expected a finite number")
    if not isinstance(leaf, str):
        return
    if "\0" in leaf:
        raise UserError(f"{key}={leaf!r}: holds a NUL character; leave it out")
    if any("\ud800" <= letter <= "\udfff" for letter in leaf):
        raise UserError(f"{key}={leaf!r}: is not UTF-8; rename it, or write it in UTF-8")


def known_groups() -> list[str]:
    """The groups of `conf/`: what may stand alone on the left of `=`."""
    return sorted(folder.name for folder in CONF.iterdir() if any(folder.glob("*.yaml")))


def _prepare(text: str) -> str:
    """Check one override against what exists; returns it in the form that Hydra composes."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        key, sign, value = text.partition("=")
        if sign and key:
            _check_leaf(key, value)
        if ADDRESS.match(value):  # nobody means anything but the text by it
            return _prepare(f'{key}="{_escaped(value)}"')
        raise UserError(
            f"{text!r}: not understood; write key=value, and quote a value with special characters:"
            f" {_quoted(key, value)}"
        ) from None
    key = override.key_or_group
    if not key:
        raise UserError(f"{text!r}: write key=value")
    if override.is_sweep_override():
        raise UserError(f"{text}: a run takes one value for {key}; a list is written {key}=[a,b]")
    if override.package is not None or override.is_delete():
        raise UserError(f"{text}: cannot move or remove {key}; write {key}=value")
    if key in known_groups():
        return _prepare_group(key, override)
    if not _is_setting(key):
        _unknown_key(key)
    return "++" + text.strip().lstrip("+")


def _quoted(key: str, value: str) -> str:
    """An override to be pasted into a shell: quoted for Hydra within quotes for the shell."""
    if not key or not value or value[0] in "[{\"'":
        return "'key=\"value\"'"
    return shlex.quote(f'{key}="{_escaped(value)}"')


def _escaped(value: str) -> str:
    """As it stands between double quotes for Hydra, which takes a backslash for itself, unless a
    quote or an interpolation follows."""
    return re.sub(r'(\\*)("|\$(?=\{)|$)', lambda m: m[1] * 2 + (m[2] and "\\" + m[2]), value)


def _prepare_group(group: str, override: Override) -> str:
    """An override such as `method=trge`; the option must be one of the group's files."""
    option, known = override.value(), options(group)
    if not isinstance(option, str) or option not in known:
        raise UserError(
            f"{group}={_shown(option)}: unknown; choose one of {', '.join(known)}"
            f"{_did_you_mean(str(option), known)}"
        )
    return f"{group}={option}"


def _is_setting(key: str) -> bool:
    """Whether a dotted key names a setting (or anything below a free-form `options`)."""
    model: Any = Settings
    for part in key.split("."):
        if model is dict:
            return bool(part)
        fields = fields_of(model)
        if part not in fields:
            return False
        annotation = fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        else:
            model = dict if getattr(annotation, "__origin__", None) is dict else None
    return True


def _unknown_key(key: str) -> NoReturn:
    known = _all_keys()
    raise UserError(f"{key}: unknown key{_did_you_mean(key, known) or _siblings(key, known)}")


def _all_keys(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Every dotted key of the settings, sections included."""
    keys: list[str] = []
    for name, field in fields_of(model).items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys.extend(_all_keys(field.annotation, f"{prefix}{name}."))
    return keys


def _siblings(key: str, known: Iterable[str]) -> str:
    """What exists in the deepest section of `key` that is known."""
    section = key.rpartition(".")[0]
    while section and section not in known:
        section = section.rpartition(".")[0]
    start = f"{section}." if section else ""
    names = [k[len(start) :] for k in known if k.startswith(start) and k != section]
    return f"; {section or 'the run'} has {', '.join(n for n in names if '.' not in n)}"


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name, empty where none is near.

    Within a known section only the last part counts; elsewhere the whole key, then its last part,
    so that `training.stepz`, `trainng.steps` and `steps` all find `training.steps`.
    """
    known = list(known)
    section, dot, last = given.rpartition(".")
    siblings = [k for k in known if section in known and k.rpartition(".")[0] == section]
    if siblings:
        names = difflib.get_close_matches(last, [k.rpartition(".")[2] for k in siblings], n=1)
        close = [f"{section}{dot}{name}" for name in names]
    else:
        close = difflib.get_close_matches(given, known, n=1, cutoff=0.75)
        close = close or [k for k in known if k.rpartition(".")[2] == last]
    return f"; did you mean {close[0]}?" if close else ""


def _plain(composed: Any) -> dict[str, Any]:
    """Plain values with interpolations resolved; a value still to be given is a user error."""
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise UserError(f"{missing[0]}: must be given, as {missing[0]}=...")
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    """One line for all problems that pydantic found, keys in the order of the settings."""
    problems: dict[str, tuple[Any, list[str]]] = {}
    for problem in error.errors():
        key, given = _locate(problem, values)
        if problem["type"] == "extra_forbidden":
            return _not_here(key, values) or f"{key}: unknown key{_did_you_mean(key, _all_keys())}"
        if problem["type"] == "value_error":  # two keys contradict each other: said in words
            said = problem["ctx"]["error"]
            return str(said) if isinstance(said, UserError) else f"{key}: {said}"
        expected = _expected(problem)
        if expected not in problems.setdefault(key, (given, []))[1]:
            problems[key][1].append(expected)
    return "; ".join(
        f"{key}{'' if given is MISSING else '=' + _shown(given)}: expected {' or '.join(expected)}"
        for key, (given, expected) in problems.items()
    )


def _not_here(key: str, values: Mapping[str, Any]) -> str | None:
    """What to say of a key that other identifiers have; None for any other key."""
    section, _, name = key.partition(".")
    others = owners(name) if section == "identifier" else []
    if not others:
        return None
    chosen = values[section]["name"]
    return f"{key} belongs to identifier={' or '.join(others)}, and this is identifier={chosen}"


def _locate(problem: Any, values: Any) -> tuple[str, Any]:
    """Dotted key and given value of a problem; the names of union members are no part of a key."""
    key: list[str] = []
    for part in problem["loc"]:
        inside_dict = isinstance(values, Mapping) and part in values
        inside_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if inside_dict or inside_list:
            values = values[part]
        elif problem["type"] == "missing":
            values = MISSING
        else:
            continue
        key.append(str(part))
    return ".".join(key), values


def _expected(problem: Any) -> str:
    """What a key wants, in words."""
    kind, context = problem["type"], problem.get("ctx", {})
    words = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text (quote it: '\"text\"')",
        "list_type": "a list: [a,b]",
        "tuple_type": "a list: [a,b]",
        "dict_type": "a section: {key: value}",
        "model_type": "a section: {key: value}",
        "missing": "a value",
        "greater_than": f"more than {context.get('gt')}",
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than": f"less than {context.get('lt')}",
        "less_than_equal": f"at most {context.get('le')}",
        "literal_error": f"{context.get('expected')}",
        "finite_number": "a finite number",
    }
    return words.get(kind) or problem["msg"].lower().removeprefix("input should be ")


def _shown(value: Any) -> str:
    """A given value as it would be written on the command line, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if isinstance(value, str) and re.fullmatch(r"[\d.+-]+|true|false|null|", value, re.I):
        text = f'"{value}"'
    return text if len(text) <= 80 else f"{text[:77]}..."


def _composing(error: Exception) -> str:
    """One line for what Hydra or OmegaConf refuse: the key, then the first line of their reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    key = getattr(error, "full_key", None)
    return f"{key}: {reason}" if key else reason
