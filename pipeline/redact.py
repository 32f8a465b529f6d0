"""Hides secrets in settings, messages and events, by structure: where a secret can stand.

Three places hold secrets: the user information and the query of an address, the value of a name
that says so (`api_key`, `PWD`, `Authorization`), and a token that is known by its form (`hf_...`).
Everything else stays as it is, because settings are read back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

from pydantic import BaseModel

HIDDEN = "***"
# Settings whose keys are names that a person chose, not what the values are ...
NAMED = ("stream.options.sets",)
# ... and words about pictures, which are stored as they are.
PROSE = ("identifier.descriptions",)

# Words of a name. `token` is one, `max_tokens` a number.
ALWAYS = {
    *("secret", "secrets", "password", "passwords", "passwd", "passwort", "pwd", "pass"),
    *("passphrase", "passcode", "credential", "credentials", "apikey", "accesskey", "secretkey"),
    *("authkey", "privatekey", "accountkey", "sharedkey", "bearer", "jwt", "authorization"),
    *("auth", "oauth", "cookie", "cookies", "otp"),
}
TEXTS = {"token", "tokens", "authtoken", "accesstoken"}
IN_QUERY = {"sig", "signature", "sas", "key", "code"}
# `key` alone is one, and so is what ends in it, unless it is a key of another kind.
OTHER_KEYS = {"primary", "foreign", "sort", "group", "partition", "image", "label", "public"}
KEYS = {("access", "key"), ("api", "key")}  # wherever they stand in a name
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[a-z]+")

ADDRESS = re.compile(r"(?P<head>[a-z][a-z0-9+.-]*://)(?P<rest>[^\s\"'<>`]+)", re.I)
BARE_ADDRESS = re.compile(r"(?P<head>(?<![\w:/])//)(?P<rest>[^\s/@:\"']+:[^\s\"']*@[^\s\"']*)")
ENCODED_ADDRESS = re.compile(r"(?P<head>%3A%2F%2F[^\s&%]+%3A)[^\s&]*?(?P<tail>%40)", re.I)
PAIR = re.compile(
    r"(?P<lead>(?:%[0-9A-F]{2})*)(?P<name>[A-Za-z_][\w.-]*)(?P<is>\s*(?:=|%(?:25)*3D)\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|\{[^}]*\}|(?:(?!%(?:25)*(?:3B|26))[^\s&;,\"'<>)\]}])+)",
    re.I,
)
JSON_PAIR = re.compile(r"(?P<name>[\"'][^\"'\s]+[\"'])(?P<is>\s*:\s*)(?P<value>\"[^\"]*\"|'[^']*')")
OPTION = re.compile(r"(?P<name>(?<!\S)--[\w-]+)(?P<is>\s+)(?P<value>[^\s-]\S*)")
HEADER = re.compile(
    r"(?P<name>\b(?:authorization|proxy-authorization|cookie|set-cookie|x-api-key|api-key)\s*:\s*)"
    r"(?:(?P<kind>bearer|basic|token|digest)\s+)?[^\s,\"']+",
    re.I,
)
SCHEME = re.compile(r"\b(?P<kind>bearer|basic)\s+(?=[\w.~+/-]*\d)[\w.~+/-]{6,}=*", re.I)
# Tokens of services, by their prefixes; most need a digit, so that no word is taken for one.
TOKENS = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"(?:sk|pk|rk)[-_](?=[\w-]*\d)[\w-]{6,}"
    r"|hf_(?=\w*\d|\w{20})\w{6,}"
    r"|(?:gh[opusr]_|github_pat_|glpat-|npm_|pypi-|dop_v1_|dapi|xox[abeprs]-|xapp-)"
    r"(?=[\w-]*\d)[\w-]{8,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{12,}|AIza[\w-]{20,}|ya29\.[\w-]{8,}|SG\.[\w-]{8,}\.[\w-]{8,}"
    r"|eyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*"
    r")"
)
KEY_BLOCK = re.compile(
    r"-----BEGIN (?P<kind>[A-Z ]*PRIVATE KEY)-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S
)


def redacted(settings: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """`settings` as plain nested values with every secret replaced by `***`."""
    values = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
    return {key: _redact((str(key),), value, False) for key, value in values.items()}


def discreet(value: Any) -> Any:
    """Any nested value with what is secret in its texts and names replaced by `***`."""
    return _redact((), value, False)


def discreet_text(text: str) -> str:
    """A message without the passwords, keys and tokens that it quotes."""
    text = KEY_BLOCK.sub(rf"-----\g<kind>-----{HIDDEN}", text)
    text = ADDRESS.sub(_address, text)
    text = BARE_ADDRESS.sub(_address, text)
    text = ENCODED_ADDRESS.sub(rf"\g<head>{HIDDEN}\g<tail>", text)
    text = HEADER.sub(_header, text)
    text = SCHEME.sub(rf"\g<kind> {HIDDEN}", text)
    for pattern in (JSON_PAIR, PAIR, OPTION):
        text = pattern.sub(_pair, text)
    return TOKENS.sub(HIDDEN, text)


def is_secret(name: str, query: bool = False) -> bool:
    """Whether a name says that its value is secret; in an address's query more names do."""
    words = [word.lower() for word in WORD.findall(unquote(name))]
    joined = "".join(words)
    if ALWAYS.intersection(words) or joined in ALWAYS or _is_key(words):
        return True
    return "token" in words or bool(query and IN_QUERY.intersection(words))


def _is_key(words: list[str]) -> bool:
    if not words or words[-1] not in ("key", "keys"):
        return bool(KEYS.intersection(pairwise(words)))
    return len(words) == 1 or words[-2] not in OTHER_KEYS


def _redact(path: tuple[str, ...], value: Any, secret: bool) -> Any:
    """A value below `path`; `secret` where a name above says that all of it is."""
    if ".".join(path) in PROSE:
        return value
    if isinstance(value, Mapping):
        named = ".".join(path) in NAMED
        return {
            key: _redact((*path, str(key)), item, secret or (not named and _hides(str(key), item)))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        inner = secret or (bool(path) and _hides(path[-1], value) and not _below_names(path))
        return [_redact(path, item, inner) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if secret or (len(path) == 1 and _hides(path[0], value)):
        return HIDDEN if value != "" else value
    return discreet_text(value) if isinstance(value, str) else value


def _below_names(path: tuple[str, ...]) -> bool:
    return ".".join(path[:-1]) in NAMED


def _hides(name: str, value: Any) -> bool:
    """Whether a name makes its value secret; numbers of tokens are none."""
    words = [word.lower() for word in WORD.findall(name)]
    if ALWAYS.intersection(words) or "".join(words) in ALWAYS:
        return True
    if isinstance(value, int | float):
        return False
    return bool(TEXTS.intersection(words)) or _is_key(words)


def _address(match: re.Match[str]) -> str:
    head, rest = match["head"], match["rest"]
    place, mark, query = _split_query(rest)
    user = _user(place, head.lower())
    if user is not None:
        name, colon, _ = user.partition(":")
        hidden = f"{name}:{HIDDEN}" if colon else HIDDEN
        place = f"{hidden}@{place[len(user) + 1 :]}"
    return head + place + mark + re.sub(r"([?&;#]?)([^?&;#=]+)=([^&;#]*)", _argument, query)


def _split_query(rest: str) -> tuple[str, str, str]:
    """Before the query, its mark, and the query; a mark before the last @ may be a password's."""
    for at, letter in enumerate(rest):
        if letter in "?#" and "=" in rest[at:]:
            return rest[:at], letter, rest[at + 1 :]
    return rest, "", ""


def _user(place: str, head: str) -> str | None:
    """The user information before the host: up to the last @, as passwords may hold anything."""
    if "@" not in place:
        return None
    before = place.rpartition("@")[0]
    authority = place.partition("/")[0]
    name, colon, rest = before.partition(":")
    if "/" in name:
        return None  # an @ in a path
    if colon:
        port = rest.partition("/")
        if port[1] and port[0].isdigit() and head not in ("s3://", "gs://"):
            return None  # host:port/path@more
        return before
    if "@" in authority and (head.startswith(("http", "git", "hf")) or head == "//"):
        return authority.rpartition("@")[0]
    return None


def _argument(match: re.Match[str]) -> str:
    mark, name, value = match.groups()
    if not value or not is_secret(name, query=True):
        return match[0]
    return f"{mark}{name}={HIDDEN}"


def _header(match: re.Match[str]) -> str:
    kind = f"{match['kind']} " if match["kind"] else ""
    return f"{match['name']}{kind}{HIDDEN}"


def _pair(match: re.Match[str]) -> str:
    name = match["name"].strip("\"'-")
    words = [word.lower() for word in WORD.findall(name.rpartition(".")[2])]
    if words in (["key"], ["keys"], ["auth"], ["pass"]) or not is_secret(name.rpartition(".")[2]):
        return match[0]
    value = match["value"]
    quotes = (value[0], value[-1]) if len(value) > 1 and value[0] in "\"'{" else ("", "")
    lead = match.groupdict().get("lead") or ""
    return f"{lead}{match['name']}{match['is']}{quotes[0]}{HIDDEN}{quotes[1]}"
