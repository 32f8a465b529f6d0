"""Tensors as safetensors bytes: the same tensors always give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from archipelago.pipeline.errors import IntegrityError


def dump(tensors: Mapping[str, torch.Tensor | np.ndarray]) -> bytes:
    """safetensors bytes of `tensors`, without metadata, whatever their order, device or strides."""
    return safetensors.torch.save({name: _whole(tensors[name]) for name in sorted(tensors)})


def load(data: bytes, name: str = "the tensor file") -> dict[str, torch.Tensor]:
    """Tensors on the CPU, by name. Raises: IntegrityError, naming `name`, for other bytes."""
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise IntegrityError(f"{name} is not in safetensors format ({error})") from None


def _whole(value: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A contiguous CPU copy: safetensors refuses tensors that share memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return torch.from_numpy(np.array(value, order="C"))
