"""What the parts of the system cost, as figures that a later version is held against.

CPU time of one thread, the fastest of several repetitions, with fixed kernels: what else the
machine does matters little, and ratios of two figures depend little on the machine.

Shapes: B images of a batch, S image side, C classes, L tokens, D width.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archipelago.pipeline.methods import StageContext, build_method
from archipelago.pipeline.model.backbone import Backbone, load_backbone
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.training.objectives import Prompts

KERNELS = Kernels(device="cpu", attention="math", precision="fp32")
BATCH, REPEATS = 32, 5
TRAINED = ("archipelago", "trge", "lora", "moe_adapters", "finetune_per_task")
CLASSES = (10, 100)
TEMPLATE = "a photo of a {}."
# A module of every kind of process, whose start is its import.
STARTS = {
    "command": "archipelago.cli",
    "driver": "archipelago.actors.learning",
    "encoder": "archipelago.actors.encoders",
    "train_worker": "archipelago.pipeline.training.worker",
    "train_controller": "archipelago.pipeline.training.entry",
    "model": "archipelago.pipeline.learned.runtime",
}
IMPORT = """
import resource, sys
__import__(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
lines = open("/proc/self/status").read().splitlines()
(peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
sys.stdout.write(f"{used.ru_utime + used.ru_stime} {int(peak) / 1024}")
"""


def machine() -> dict[str, Any]:
    """What the figures are of: processor, cores, versions."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def feature_pass(backbone: Backbone, batch: int = BATCH) -> float:
    """Milliseconds an image of frozen CLIP's image encoder."""
    images = _images(backbone, batch)

    def work() -> None:
        with torch.no_grad(), backbone.kernels.exact():
            backbone.encode_image(images)

    return 1000.0 * fastest(work) / batch


def training_step(
    backbone: Backbone, settings: Settings, classes: int, batch: int = BATCH
) -> float:
    """Milliseconds an image of one step forwards and backwards, from the trunk's activations on.

    Args:
        backbone: of the settings.
        settings: name the method; `training.negatives` counts.
        classes: of the task.
        batch: images of a step.
    """
    method = build_method(settings, None, backbone)
    adapter = method.adapter(StageContext(0, "task", (), ("task",), (classes,)))
    first_text = method.first_blocks[1]
    with torch.no_grad():
        x_BLD = method.trunk(_images(backbone, batch))
    names = [f"thing {number}" for number in range(classes)]
    ((x_CLD, position_C),) = Prompts(backbone, first_text, names, [TEMPLATE])
    asked = settings.training.negatives
    if adapter.reads_names and 0 < asked < classes:
        x_CLD, position_C = x_CLD[:asked], position_C[:asked]

    def work() -> None:
        with backbone.kernels.training():
            similar = adapter.image(x_BLD) @ adapter.text(x_CLD, position_C).T
        similar.float().square().sum().backward()

    return 1000.0 * fastest(work) / batch


def steps(
    settings_of: Callable[[str], Settings],
    methods: Sequence[str] = TRAINED,
    classes: Sequence[int] = CLASSES,
    batch: int = BATCH,
) -> dict[str, float]:
    """The feature pass and the training steps, by name; one thread of torch.

    Args:
        settings_of: settings of a method.
        methods: by name.
        classes: sizes of the task.
        batch: images of a step.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        backbone = load_backbone(settings_of(methods[0]).backbone, KERNELS.device, KERNELS)
        found = {"feature_pass": feature_pass(backbone, batch)}
        for method in methods:
            for size in classes:
                name = f"step.{method}.{size}"
                found[name] = training_step(backbone, settings_of(method), size, batch)
    finally:
        torch.set_num_threads(threads)
    return found


def starts(modules: Mapping[str, str] = STARTS) -> dict[str, dict[str, float]]:
    """CPU seconds and MiB of a fresh process of each kind, once it has imported what it is."""
    found = {}
    for name, module in modules.items():
        taken = []
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-c", IMPORT, module], capture_output=True, text=True, check=True
            )
            taken.append([float(word) for word in done.stdout.split()])
        seconds, mib = np.min(taken, axis=0).tolist()
        found[name] = {"seconds": seconds, "mib": mib}
    return found


def ratios(figures: Mapping[str, float]) -> dict[str, float]:
    """Training steps in feature passes."""
    one = figures["feature_pass"]
    return {name: value / one for name, value in figures.items() if name.startswith("step.")}


def fastest(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """CPU seconds of this thread, the fastest of several, after one to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        clock = time.thread_time()
        work()
        taken.append(time.thread_time() - clock)
    return min(taken)


def _images(backbone: Backbone, batch: int) -> torch.Tensor:
    size = int(backbone.image_size)
    random = np.random.default_rng(0)
    return backbone.normalise(random.integers(0, 256, (batch, size, size, 3), np.uint8))
