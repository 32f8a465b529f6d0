"""Tensors of the Open Inference Protocol: their names and shapes, and answers as such.

Binary tensors follow the JSON part of a body: little-endian, row by row; a text is its length in
four bytes and then UTF-8.

Shapes: n images, k classes, S side of the model's input.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from archipelago.pipeline.learned.asking import Answer

IMAGE, FILE = "image", "file"  # the inputs: pixels, or encoded files; a request brings one of them
BINARY = "binary_data_size"
LENGTH = struct.Struct("<I")
_DTYPES = {"FP64": "<f8", "BOOL": "?"}


class Output(NamedTuple):
    """A tensor that comes back; -1 is what a request decides."""

    datatype: str
    shape: tuple[int, ...]


OUTPUTS = {
    "label": Output("BYTES", (-1, -1)),
    "probability": Output("FP64", (-1, -1)),
    "task": Output("BYTES", (-1,)),
    "task_confidence": Output("FP64", (-1,)),
    "unseen": Output("BOOL", (-1,)),
    "unseen_probability": Output("FP64", (-1,)),
    "refused": Output("BOOL", (-1,)),
}


def inputs(size: int) -> list[dict[str, Any]]:
    """Names, types and shapes of what a model of S = `size` takes: one of them."""
    return [
        {"name": IMAGE, "datatype": "UINT8", "shape": [-1, size, size, 3]},
        {"name": FILE, "datatype": "BYTES", "shape": [-1]},
    ]


def outputs() -> list[dict[str, Any]]:
    """The same of what comes back."""
    return [
        {"name": name, "datatype": output.datatype, "shape": list(output.shape)}
        for name, output in OUTPUTS.items()
    ]


def configuration(name: str, platform: str, size: int) -> dict[str, Any]:
    """What the model configuration extension says: the same tensors in its words."""

    def worded(tensor: dict[str, Any], **more: Any) -> dict[str, Any]:
        kind = tensor["datatype"].replace("BYTES", "STRING")
        return {
            "name": tensor["name"],
            "data_type": f"TYPE_{kind}",
            "dims": tensor["shape"],
            **more,
        }

    return {
        "name": name,
        "platform": platform,
        "backend": "",
        "max_batch_size": 0,  # the first dimension is in `dims`
        "input": [worded(tensor, optional=True) for tensor in inputs(size)],
        "output": [worded(tensor) for tensor in outputs()],
    }


def encoded(
    answers: Sequence[Answer], wanted: Sequence[tuple[str, bool]]
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The tensors that are wanted, and the bytes of those in binary, in the same order.

    Where an image has fewer classes than another, its rows end with empty labels.
    """
    n, k = len(answers), max(len(answer.classes) for answer in answers)
    data = _flat(answers, k)
    told, blobs = [], []
    for name, binary in wanted:
        output = OUTPUTS[name]
        shape = [n, k][: len(output.shape)]
        tensor: dict[str, Any] = {"name": name, "datatype": output.datatype, "shape": shape}
        if binary:
            blob = _bytes(output.datatype, data[name])
            tensor["parameters"] = {BINARY: len(blob)}
            blobs.append(blob)
        else:
            tensor["data"] = data[name]
        told.append(tensor)
    return told, blobs


def _flat(answers: Sequence[Answer], k: int) -> dict[str, list[Any]]:
    padded = [[*answer.classes, *[("", 0.0)] * (k - len(answer.classes))] for answer in answers]
    pairs = [pair for row in padded for pair in row]
    return {
        "label": [label for label, _ in pairs],
        "probability": [p for _, p in pairs],
        "task": [answer.task or "" for answer in answers],
        "task_confidence": [answer.task_confidence for answer in answers],
        "unseen": [answer.unseen for answer in answers],
        "unseen_probability": [answer.unseen_probability for answer in answers],
        "refused": [answer.refused for answer in answers],
    }


def _bytes(datatype: str, data: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        texts = [text.encode() for text in data]
        return b"".join(LENGTH.pack(len(text)) + text for text in texts)
    return np.array(data, dtype=_DTYPES[datatype]).tobytes()  # None is NaN
