"""Which attention kernel and precision a processor runs fastest: decided by what it has.

CPUs that multiply in bf16 and others differ several-fold, in opposite directions. A race would
decide by what else the machine does just then, and two runs of one seed would differ; what the
processor has is the same every time. A run records the choice and a resumed run reuses it, because
results depend on it to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
BF16_UNITS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # as torch asks a CPU


@dataclass(frozen=True)
class Kernels:
    """The attention kernel and the precisions in use on `device`: of training and of inference."""

    attention: str = "math"
    precision: str = "fp32"
    device: str = "cpu"
    inference: str = "fp32"

    def asdict(self) -> dict[str, str]:
        """Plain form for `run.json`."""
        return asdict(self)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Context of a training step: attention kernel and autocast."""
        with self._attending(), self._autocast(self.precision):
            yield

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Context of inference: the attention kernel, in full precision unless `inference` says
        otherwise."""
        with self._attending(), self._autocast(self.inference), _tf32(self.inference == "tf32"):
            yield

    def _attending(self) -> contextlib.AbstractContextManager[None]:
        return sdpa_kernel([BACKENDS[self.attention], SDPBackend.MATH], set_priority=True)

    def _autocast(self, precision: str) -> contextlib.AbstractContextManager[object]:
        """In half precision, or in full one also where a training step asks from within."""
        half = precision == "bf16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half)

    @classmethod
    def stored(cls, facts: Mapping[str, str], device: str | None = None) -> Kernels:
        """Those that a run was begun with.

        Args:
            facts: of `asdict`.
            device: to use instead, where the run goes on on another machine.
        """
        kernels = cls(**facts)
        return kernels if device is None else replace(kernels, device=device)


@contextlib.contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Products in TensorFloat-32 on GPUs that have it; CPUs compute in full precision."""
    if not wanted:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def resolve_device(name: str) -> str:
    """`auto` is the first GPU if there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose(attention: str, precision: str, device: str, inference: str = "fp32") -> Kernels:
    """The kernels for everything left `auto`.

    Args:
        attention: a kernel's name or `auto`.
        precision: `fp32`, `bf16` or `auto`.
        device: a torch device.
        inference: `fp32`, `tf32` or `bf16`.

    Returns:
        GPUs: flash attention, bf16 where the card computes in it. CPUs that multiply in
        bf16: math and bf16; other CPUs: flash and fp32.
    """
    half = multiplies_bf16(device)
    fused = device.startswith("cuda") or not half
    best = ("flash" if fused else "math", "bf16" if half else "fp32")
    return Kernels(
        best[0] if attention == "auto" else attention,
        best[1] if precision == "auto" else precision,
        device,
        inference,
    )


def multiplies_bf16(device: str) -> bool:
    """Whether a device has instructions for bf16 products; of CPUs, tiles (AMX) or vectors."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    asked = (getattr(torch.cpu, name, None) for name in BF16_UNITS)
    return any(bool(has()) for has in asked if has is not None)
