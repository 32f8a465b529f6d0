"""Which attention kernel and precision a processor runs fastest: decided by what it has.

CPUs that multiply in bf16 and others differ several-fold, in opposite directions. A race would
decide by what else the machine does just then, and two runs of one seed would differ; what the
processor has is the same every time. A run records the choice and a resumed run reuses it, because
results depend on it to the last bit.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
FP32_ERROR = 1e-5  # of a product, relative: bf16 errs by 1e-3
BF16_UNITS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # as torch asks a CPU


@dataclass(frozen=True)
class Kernels:
    """What computes on `device`.

    Attributes:
        attention: kernel.
        precision: of training, `fp32` or `bf16`.
        device: of torch.
        inference: precision, `fp32`, `tf32` or `bf16`.
        products: who multiplies in fp32 on a CPU: `torch` = whom torch asks (MKL), or `onednn`.
    """

    attention: str = "math"
    precision: str = "fp32"
    device: str = "cpu"
    inference: str = "fp32"
    products: str = "torch"

    def asdict(self) -> dict[str, str]:
        """Plain form for `run.json`."""
        return asdict(self)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Context of a training step: attention kernel and autocast."""
        with self._attending(), self._autocast(self.precision), self._multiplying():
            yield

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Context of inference: the attention kernel, in full precision unless `inference` says
        otherwise."""
        with self._attending(), self._autocast(self.inference), self._multiplying(self.inference):
            yield

    def _attending(self) -> contextlib.AbstractContextManager[None]:
        return sdpa_kernel([BACKENDS[self.attention], SDPBackend.MATH], set_priority=True)

    def _autocast(self, precision: str) -> contextlib.AbstractContextManager[object]:
        """In half precision, or in full one also where a training step asks from within."""
        half = precision == "bf16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half)

    def _multiplying(self, precision: str = "fp32") -> contextlib.AbstractContextManager[None]:
        cpu = self.device == "cpu"
        if precision == "tf32" and not cpu:
            return _TF32.held("high")
        if self.products == "onednn" and cpu and onednn_multiplies_exactly():
            return _ONEDNN.held("bf16")
        return contextlib.nullcontext()

    @classmethod
    def stored(cls, facts: Mapping[str, str], device: str | None = None) -> Kernels:
        """Those that a run was begun with.

        Args:
            facts: of `asdict`.
            device: to use instead, where the run goes on on another machine.
        """
        kernels = cls(**facts)
        return kernels if device is None else replace(kernels, device=device)


class Switch:
    """A setting of the process that threads hold at once, put back when the last one lets go.

    Args:
        read: what it is.
        write: sets it.
    """

    def __init__(self, read: Callable[[], str], write: Callable[[str], Any]) -> None:
        self._read, self._write = read, write
        self._lock, self._holders, self._before = threading.Lock(), 0, ""

    @contextlib.contextmanager
    def held(self, value: str) -> Iterator[None]:
        """Set it for as long as somebody is within."""
        with self._lock:
            if not self._holders:
                self._before = self._read()
            self._holders += 1
            self._write(value)
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._write(self._before)


def _onednn() -> Any:
    """Torch's settings of oneDNN's products; None before torch 2.9."""
    return getattr(torch.backends.mkldnn, "matmul", None)


# Products in TensorFloat-32, on GPUs; torch bears no mixture of this setting and oneDNN's.
_TF32 = Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
# Torch leaves fp32 products to oneDNN only where it may round the factors to bf16. It does so with
# tiles alone: elsewhere it multiplies in full precision.
_ONEDNN = Switch(
    lambda: str(_onednn().fp32_precision), lambda value: setattr(_onednn(), "fp32_precision", value)
)


@functools.cache
def onednn_multiplies_exactly() -> bool:
    """Whether oneDNN's fp32 products are that on this CPU: one is held against that of doubles."""
    if not hasattr(_onednn(), "fp32_precision"):
        return False
    a = torch.linspace(-1.0, 1.0, 64 * 256, dtype=torch.float64).view(64, 256).sin()
    exact = a @ a.T
    with _ONEDNN.held("bf16"), torch.no_grad():
        found = a.float() @ a.float().T
    return bool(((found - exact).abs().max() / exact.abs().max()) < FP32_ERROR)


def mkl_keeps_to_avx2() -> bool:
    """Whether this CPU has AVX-512 that MKL does not use: it does on Intel's alone."""
    asked = getattr(torch.cpu, "get_capabilities", None)
    found = {} if asked is None else asked()
    return bool(found.get("avx512_f")) and "AMD" in str(found.get("cpu_name", ""))


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
        bf16: math and bf16; other CPUs: flash and fp32. On AMD's with AVX-512, oneDNN's products.
    """
    half = multiplies_bf16(device)
    fused = device.startswith("cuda") or not half
    best = ("flash" if fused else "math", "bf16" if half else "fp32")
    other = device == "cpu" and mkl_keeps_to_avx2() and onednn_multiplies_exactly()
    return Kernels(
        best[0] if attention == "auto" else attention,
        best[1] if precision == "auto" else precision,
        device,
        inference,
        "onednn" if other else "torch",
    )


def multiplies_bf16(device: str) -> bool:
    """Whether a device has instructions for bf16 products; of CPUs, tiles (AMX) or vectors."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    asked = (getattr(torch.cpu, name, None) for name in BF16_UNITS)
    return any(bool(has()) for has in asked if has is not None)
