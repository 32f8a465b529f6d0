from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.store import tensors


def sample() -> dict[str, torch.Tensor | np.ndarray]:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {
        "b": base.T,
        "a": base[1:, ::2],
        "same": base,
        "half": base.to(torch.bfloat16),
        "parameter": torch.nn.Parameter(base.clone()),
        "counts": np.array([[3, 1]], dtype=np.int64)[:, ::-1],
        "scalar": np.array(2.5),
        "empty": torch.empty(0, 7),
        "flags": np.array([True, False]),
    }


def test_round_trip_keeps_values_shapes_and_types() -> None:
    source = sample()
    loaded = tensors.load(tensors.dump(source))
    assert loaded.keys() == source.keys()
    for name, value in source.items():
        expected = torch.tensor(value.copy()) if isinstance(value, np.ndarray) else value.detach()
        assert loaded[name].dtype == expected.dtype and loaded[name].shape == expected.shape
        assert torch.equal(loaded[name], expected)
    assert tensors.load(tensors.dump({})) == {}


def test_bytes_are_the_same_in_any_order_and_process() -> None:
    source = sample()
    data = tensors.dump(source)
    assert tensors.dump(dict(reversed(source.items()))) == data
    code = (
        "import hashlib, sys; sys.path.insert(0, 'tests/unit');"
        "from test_store_tensors import sample; from archipelago.pipeline.store import tensors;"
        "sys.stdout.write(hashlib.sha256(tensors.dump(sample())).hexdigest())"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == hashlib.sha256(data).hexdigest()


def test_loaded_tensors_do_not_share_memory_with_the_source() -> None:
    value = torch.zeros(2)
    loaded = tensors.load(tensors.dump({"x": value}))["x"]
    loaded.add_(1)
    assert value.sum() == 0


@pytest.mark.parametrize("data", [b"", b"rubbish", pickle.dumps({"x": 1}), b"\xff" * 64])
def test_anything_else_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"group\.safetensors is not in safetensors"):
        tensors.load(data, "group.safetensors")
