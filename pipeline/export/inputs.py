"""Images as MLflow hands them over: bytes, base64, data URLs, paths, PIL images."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

from archipelago.pipeline.errors import UserError

SERVED = "__pyfunc_model_path__"  # MLflow's mark of a process that answers over HTTP
LONGEST_PATH = 4096


def picture(value: Any, place: int) -> Any:
    """What `LearnedModel.answer` takes, from one cell.

    Text is base64 where it decodes to something, and else the path of a file. Over HTTP nobody may
    name files of the server.

    Raises:
        UserError: text that is neither.
    """
    if not isinstance(value, str):
        return value
    encoded = value.partition(";base64,")[2] if value.startswith("data:") else value
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    path = len(value) < LONGEST_PATH and SERVED not in os.environ
    if path and (not data or _is_file(value)):
        return value
    if not data:
        raise UserError(f"image {place}: is not an image in base64")
    return data


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False
