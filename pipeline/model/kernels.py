"""Which attention kernel and precision this processor runs fastest: measured once, then recorded.

CPUs with and without matrix units differ several-fold, in opposite directions, so a short probe
decides. A resumed run reuses the recorded choice, because results depend on it to the last bit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROBE_REPEATS = 5  # the minimum of five survives a noisy neighbour


@dataclass(frozen=True)
class Kernels:
    """The attention kernel and the training precision in use on `device`."""

    attention: str = "math"
    precision: str = "fp32"
    device: str = "cpu"

    def asdict(self) -> dict[str, str]:
        """Plain form for `run.json`."""
        return asdict(self)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Context of a training step: attention kernel and autocast."""
        with self.exact():
            if self.precision == "fp32":
                yield
            else:
                with torch.autocast(torch.device(self.device).type, DTYPES[self.precision]):
                    yield

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Context of inference: the attention kernel in full precision."""
        backends = [BACKENDS[self.attention], SDPBackend.MATH]
        with sdpa_kernel(backends, set_priority=True):
            yield


def resolve_device(name: str) -> str:
    """`auto` is the first GPU if there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def probe(
    attention: str, precision: str, device: str, width: int = 256, tokens: int = 65
) -> Kernels:
    """Time a small transformer block, forward and backward, for every choice left `auto`.

    Args:
        attention: a kernel's name or `auto`.
        precision: `fp32`, `bf16` or `auto`.
        device: a torch device.
        width: channels of the probe's block (D).
        tokens: sequence length of the probe (L).

    Returns:
        The fastest combination on this device.
    """
    kernels = [attention] if attention != "auto" else ["math", "flash"]
    if attention == "auto" and device.startswith("cuda"):
        kernels = ["flash", "efficient"]
    precisions = [precision] if precision != "auto" else ["fp32", "bf16"]
    choices = [Kernels(a, p, device) for p in precisions for a in kernels]
    if len(choices) == 1:
        return choices[0]
    timings = {choice: _time_block(choice, width, tokens) for choice in choices}
    return min(timings, key=lambda choice: timings[choice])


def _time_block(kernels: Kernels, width: int, tokens: int) -> float:
    generator = torch.Generator().manual_seed(0)
    x_BLD = torch.randn(32, tokens, width, generator=generator).to(kernels.device)
    w_qkv = torch.randn(3 * width, width, generator=generator).to(kernels.device) * 0.02
    w_up = torch.randn(4 * width, width, generator=generator).to(kernels.device) * 0.02
    x_BLD.requires_grad_(True)
    best = float("inf")
    for _ in range(PROBE_REPEATS):
        start = time.perf_counter()
        with kernels.training():
            q, k, v = (
                F.linear(x_BLD, w_qkv).view(32, tokens, 3, width // 64, 64).permute(2, 0, 3, 1, 4)
            )
            y_BLD = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            y_BLD = F.gelu(F.linear(y_BLD, w_up)) @ w_up
        y_BLD.float().sum().backward()
        if kernels.device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
