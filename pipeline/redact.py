"""Hides secrets in settings before they are stored, logged or tracked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

SECRET_KEY = re.compile(r"token|secret|passw(or)?d|pwd|credential|(^|[_-])key$|^key|apikey", re.I)
SECRET_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<user>[^\s/@:]*):[^\s]*@", re.I)
SECRET_USER = re.compile(r"(?P<scheme>https?://)[^\s/@:]+@", re.I)
SECRET_QUERY = re.compile(
    r"(?P<name>[?&;][^=&;\s]*(?:token|secret|passw(?:or)?d|key|sig)[^=&;\s]*=)[^&;\s]+",
    re.I,
)
HIDDEN = "***"


def redacted(settings: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """`settings` as plain nested values with every secret replaced by `***`.

    Secrets are values of keys named like a token, key, secret or password, and passwords and
    tokens inside URIs, wherever they stand.
    """
    values = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
    return {key: _redact(key, value) for key, value in values.items()}


def _redact(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _redact(name, inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(key, inner) for inner in value]
    if isinstance(value, str):
        if value and SECRET_KEY.search(key):
            return HIDDEN
        value = SECRET_URI.sub(rf"\g<scheme>\g<user>:{HIDDEN}@", value)
        value = SECRET_USER.sub(rf"\g<scheme>{HIDDEN}@", value)
        return SECRET_QUERY.sub(rf"\g<name>{HIDDEN}", value)
    return value
