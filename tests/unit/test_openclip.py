"""What importing open_clip brings with it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from archipelago.pipeline.model.openclip import open_clip
hidden = ("torch._dynamo", "transformers", "timm")
print([name for name in hidden if name in sys.modules])
import torch, transformers
from torchvision.ops import roi_align
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
print(tuple(roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape))
print(torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(1)).item())
print("torch._dynamo" in sys.modules)
"""


def test_what_open_clip_does_not_need_comes_when_it_is_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.splitlines() == ["[]", "(1, 1, 2, 2)", "1.0", "True"]
