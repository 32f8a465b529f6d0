"""The training loop of one stage on one rank: same code in process and under Ray Train.

Shapes: B local batch, L tokens, D width, C classes, P templates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pipeline.methods.base import Adapter, Method
from pipeline.model.backbone import Backbone
from pipeline.settings import TrainingSettings
from pipeline.training.trunk import TrunkCache, batch_rows

Report = Callable[[dict[str, Any], "TrainingState | None"], None]
EVALUATION_BATCH = 128


@dataclass
class StageData:
    """What one rank trains on.

    Attributes:
        trunk: activations of the rank's training rows.
        labels: labels of these rows (n,).
        held_x: activations of the held-out fold (m, L, D).
        held_y: its labels (m,).
        text: per template the prompts' activations (C, L, D) at the first adapted text block,
            and the routing position (C,).
    """

    trunk: TrunkCache
    labels: Tensor
    held_x: Tensor
    held_y: Tensor
    text: list[tuple[Tensor, Tensor]]


@dataclass
class TrainingState:
    """Everything that a checkpoint holds; batches and views follow from the step."""

    step: int = 0
    adapter: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_step: int = 0
    best_accuracy: float = -1.0
    best_loss: float = math.inf


@torch.no_grad()
def text_activations(
    backbone: Backbone, first: int, classes: list[str], templates: list[str]
) -> list[tuple[Tensor, Tensor]]:
    """Prompt activations at the first adapted text block, one pair a template; computed once."""
    tower = backbone.text
    pairs = []
    for template in templates:
        tokens = backbone.tokenize([template.format(name) for name in classes])
        position = tower.positions(tokens)
        with backbone.kernels.exact():
            pairs.append((tower.run(tower.embed(tokens), 0, first, None, position), position))
    return pairs


def planned_steps(settings: TrainingSettings, rows: int) -> int:
    """Steps of a stage of so many rows: `steps`, but no more than `max_epochs` passes."""
    if settings.max_epochs == 0:
        return settings.steps
    return max(1, min(settings.steps, settings.max_epochs * rows // settings.batch_size))


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero at the last of `steps`."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def class_features(adapter: Adapter, text: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(C, F): normalised mean over templates."""
    features = [adapter.text(x, position) for x, position in text]
    return F.normalize(torch.stack(features).mean(dim=0), dim=-1)


@torch.no_grad()
def held_out(
    backbone: Backbone, adapter: Adapter, data: StageData, rank: int = 0, world: int = 1
) -> tuple[float, float]:
    """Accuracy (fraction) and mean cross-entropy on the held-out fold; ranks share the work."""
    sums = torch.zeros(3, dtype=torch.float64)
    with backbone.kernels.exact():
        u_CF = class_features(adapter, data.text)
        for start in range(rank * EVALUATION_BATCH, len(data.held_y), world * EVALUATION_BATCH):
            stop = start + EVALUATION_BATCH
            y = data.held_y[start:stop].to(backbone.device)
            x = data.held_x[start:stop].to(backbone.device, torch.float32)
            logits = backbone.logit_scale * adapter.image(x) @ u_CF.T
            sums[0] += (logits.argmax(dim=1) == y).sum().item()
            sums[1] += F.cross_entropy(logits, y, reduction="sum").item()
            sums[2] += len(y)
    if world > 1:
        shared = sums.to(backbone.device)
        dist.all_reduce(shared)
        sums = shared.cpu()
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])


def train(
    method: Method,
    adapter: Adapter,
    data: StageData,
    *,
    stage: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    wrap: Callable[[Adapter], torch.nn.Module] = lambda adapter: adapter,
    resume: TrainingState | None = None,
    report: Report = lambda metrics, state: None,
) -> TrainingState:
    """Train one stage with cross-entropy over the task's classes (method 2.9).

    Args:
        method: gives the backbone, the settings and the learning rate.
        adapter: what is trained; holds the best weights on return.
        data: this rank's rows.
        stage: index of the stage, part of the batch order's seed.
        steps: optimisation steps, the same on every rank.
        rank: this worker.
        world: number of workers; the batch is split evenly among them.
        wrap: makes the adapter data-parallel.
        resume: a state to continue from.
        report: called every `checkpoint_every` steps with metrics and a state to store.

    Returns:
        The last state; `best` is the adapter at its best held-out accuracy (ties: lower loss).
    """
    settings, backbone = method.settings.training, method.backbone
    local = settings.batch_size // world
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    peak = method.learning_rate
    optimizer = torch.optim.AdamW(
        parameters, lr=peak, weight_decay=settings.weight_decay, foreach=True
    )
    state = resume or TrainingState()
    if resume is not None:
        adapter.load_state_dict(resume.adapter, strict=True)
        optimizer.load_state_dict(resume.optimizer)
    model = wrap(adapter)
    clock, seen, losses = time.perf_counter(), 0, []
    for step in range(state.step, steps):
        chosen = batch_rows(method.settings.seed, stage, rank, len(data.labels), step, local)
        x_BLD = _gather(data.trunk, chosen).to(backbone.device, torch.float32)
        y_B = data.labels[chosen[:, 0]].to(backbone.device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, settings.warmup, peak)
        with backbone.kernels.training():
            text = data.text[step % len(data.text)]
            cosine_BC = model(lambda a, x=x_BLD, text=text: a.image(x) @ a.text(*text).T)
        loss = F.cross_entropy(
            backbone.logit_scale * cosine_BC.float(), y_B, label_smoothing=settings.label_smoothing
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        losses.append(loss.item())
        seen += local * world
        done = step + 1
        last = done == steps
        if done % settings.validate_every == 0 or last:
            accuracy, nll = held_out(backbone, adapter, data, rank, world)
            if (accuracy, -nll) > (state.best_accuracy, -state.best_loss):
                state.best = _copy(adapter.state_dict())
                state.best_step, state.best_accuracy, state.best_loss = done, accuracy, nll
        if done % settings.checkpoint_every == 0 or last:
            state.step = done
            state.adapter = _copy(adapter.state_dict())
            state.optimizer = optimizer.state_dict()
            elapsed = time.perf_counter() - clock
            metrics = {
                "step": done,
                "loss": float(np.mean(losses)),
                "held_out_accuracy": 100.0 * state.best_accuracy,
                "best_step": state.best_step,
                "images_per_second": seen / elapsed,
            }
            losses = []
            report(metrics, state)
    adapter.load_state_dict(state.best, strict=True)
    return state


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _gather(trunk: TrunkCache, chosen: np.ndarray) -> Tensor:
    parts, order = [], []
    for epoch in np.unique(chosen[:, 1]):
        at = np.flatnonzero(chosen[:, 1] == epoch)
        parts.append(trunk.view(int(epoch))[torch.from_numpy(chosen[at, 0])])
        order.append(at)
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(order)))]
