"""The training loop of one stage on one rank: same code in process and under Ray Train.

Shapes: L tokens, D width, N routers, T tasks of the stage, E experts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import Adapter, Method
from archipelago.pipeline.model.watch import GateLog, Watch, mutual_information
from archipelago.pipeline.pace import Pace
from archipelago.pipeline.settings import TrainingSettings
from archipelago.pipeline.training.objectives import Objective, judge, predict_all
from archipelago.pipeline.training.optimizers import Average, make_optimizer
from archipelago.pipeline.training.trunk import batch_rows

Report = Callable[[dict[str, Any], "TrainingState | None"], None]


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
    averaged: dict[str, Tensor] = field(default_factory=dict)


def planned_steps(settings: TrainingSettings, *rows: int) -> int:
    """Steps of a stage whose tasks have so many rows: what they would take one by one.

    That is `steps` for each task, but no more than `max_epochs` passes over its rows.
    """
    if settings.max_epochs == 0:
        return settings.steps * len(rows)
    passes = [settings.max_epochs * count // settings.batch_size for count in rows]
    return sum(max(1, min(settings.steps, wanted)) for wanted in passes)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero at the last of `steps`."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


class StepLoss:
    """The loss of a stage's step from the losses of its tasks, and what the routers add to it.

    `equal`: their mean. `uncertainty`: the mean of `exp(-s_t) L_t + s_t / 2` with a learned `s_t`.
    Several tasks are also to use different experts: minus the mutual information of task and
    expert, summed over routers (method 3). A noisy step is a pure function of its arguments.
    """

    def __init__(self, method: Method, adapter: Adapter, tasks: int, rank: int, world: int) -> None:
        settings = method.settings
        self.seed, self.rank, self.world = settings.seed, rank, world
        self.tasks = tasks
        self.noise = settings.experts.noise
        self.information = settings.experts.information if tasks > 1 else 0.0
        self.weighted = tasks > 1 and settings.training.weighting == "uncertainty"
        if self.weighted:
            adapter.log_variance = nn.Parameter(torch.zeros(tasks, device=method.backbone.device))
        self._adapter = adapter

    def watch(self, seeding: int, step: int) -> Watch:
        """What looks on during one step."""
        generator = None
        if self.noise:
            key = np.random.SeedSequence((self.seed, seeding, step, self.rank))
            generator = torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
        return Watch(self.tasks, self.noise, generator)

    def total(self, losses: list[Tensor]) -> Tensor:
        """One loss of all tasks' losses."""
        if len(losses) == 1:
            return losses[0]
        stacked = torch.stack(losses)
        if self.weighted:
            s_T = self._adapter.log_variance
            stacked = (-s_T).exp() * stacked + 0.5 * s_T
        return stacked.mean()

    def shared_information(self, watch: Watch) -> Tensor | None:
        """Mutual information over all workers' samples, summed over routers; None where unused.

        The gradient is of this worker's part; times `world`, its mean over workers is the whole.
        """
        if not self.information or not watch.routers:
            return None
        sums_NTE = watch.probabilities()
        if self.world > 1:
            everybody = sums_NTE.detach().clone()
            dist.all_reduce(everybody)
            sums_NTE = sums_NTE + (everybody - sums_NTE.detach())
        return mutual_information(sums_NTE).sum()


def train(
    method: Method,
    adapter: Adapter,
    objectives: Sequence[Objective],
    *,
    seeding: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    wrap: Callable[[Adapter], torch.nn.Module] = lambda adapter: adapter,
    resume: TrainingState | None = None,
    report: Report = lambda metrics, state: None,
    pace: Pace | None = None,
) -> TrainingState:
    """Train one group on the tasks of a stage.

    Args:
        method: gives the backbone, the settings and the learning rate.
        adapter: what is trained; holds the best weights on return.
        objectives: the stage's tasks with this rank's rows.
        seeding: of the stage, part of the batch order's seed; a function of its tasks' names.
        steps: optimisation steps, the same on every rank.
        rank: this worker.
        world: number of workers; the batch is split evenly among them.
        wrap: makes the adapter data-parallel.
        resume: a state to continue from.
        report: called every `checkpoint_every` steps with metrics and a state to store.
        pace: counts the steps.

    Returns:
        The last state; `best` is the adapter at its best held-out accuracy, in the mean over tasks
        (ties: lower loss).

    Raises:
        UserError: the loss or the weights are no finite numbers any more; on all ranks alike.
    """
    settings, backbone = method.settings.training, method.backbone
    local = settings.batch_size // world
    count = len(objectives)
    step_loss = StepLoss(method, adapter, count, rank, world)
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    peak = method.learning_rate
    optimizer = make_optimizer(settings, parameters, peak)
    state = resume or TrainingState()
    if resume is not None:
        adapter.load_state_dict(resume.adapter, strict=True)
        optimizer.load_state_dict(resume.optimizer)
    average = Average(settings.polyak, adapter, state.averaged)
    model = wrap(adapter)
    clock, seen = time.perf_counter(), 0
    losses: list[Tensor] = []  # on the device: nothing waits for it between checks
    gates = GateLog(count)
    for step in range(state.step, steps):
        chosen = [
            batch_rows(method.settings.seed, seeding, rank, task.rows, step, local, number, count)
            for number, task in enumerate(objectives)
        ]
        inputs = [
            moved(task.inputs(rows), backbone.device)
            for task, rows in zip(objectives, chosen, strict=True)
        ]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, settings.warmup, peak)
        watch = adapter.watch = step_loss.watch(seeding, step)
        with backbone.kernels.training():
            outputs, penalty = model(
                lambda a, x=inputs, at=step: (predict_all(a, objectives, x, at), a.penalty(x, at))
            )
        adapter.watch = None
        loss = step_loss.total(
            [
                task.loss(output, rows, settings.label_smoothing)
                for task, output, rows in zip(objectives, outputs, chosen, strict=True)
            ]
        )
        losses.append(loss.detach())
        if penalty is not None:
            loss = loss + penalty
        shared = step_loss.shared_information(watch)
        if shared is not None:
            loss = loss - step_loss.information * world * shared
        gates.add(watch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        adapter.correct()
        if settings.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        seen += local * world
        done = step + 1
        adapter.stepped(done, steps)
        average.add(done)
        if pace is not None:
            pace.step(1)
        last = done == steps
        judged = done % settings.validate_every == 0 or last
        kept = done % settings.checkpoint_every == 0 or last
        if judged or kept:
            first = _first_infinite(losses)
            if _anybody(first is not None, parameters, world):
                if first is None or world > 1:  # ranks say the same
                    raise _diverged(done, peak)
                raise _diverged(done - len(losses) + first, peak)
        if judged:
            with average.inside():
                accuracy, nll = judge(adapter, objectives, rank, world)
                if (accuracy, -nll) > (state.best_accuracy, -state.best_loss):
                    state.best = _copy(adapter.state_dict())
                    state.best_step, state.best_accuracy, state.best_loss = done, accuracy, nll
        if kept:
            state.step = done
            state.adapter = _copy(adapter.state_dict())
            state.optimizer = optimizer.state_dict()
            state.averaged = _copy(average.values)
            elapsed = time.perf_counter() - clock
            metrics = {
                "step": done,
                "loss": float(torch.stack(losses).double().mean()),
                **held_out(state, objectives),
                "best_step": state.best_step,
                "images_per_second": seen / elapsed,
                **gates.take(method.settings.experts.shared_count),
            }
            losses = []
            report(metrics, state)
    adapter.load_state_dict(state.best, strict=True)
    with torch.no_grad():
        adapter.settle()
    return state


def held_out(state: TrainingState, objectives: Sequence[Objective]) -> dict[str, float]:
    """Figures of the best weights on the held-out folds; accuracy (percent) where there is one.

    Empty before the first look at them.
    """
    if not math.isfinite(state.best_loss):
        return {}
    found = {"held_out_loss": state.best_loss}
    if any(task.scored for task in objectives):
        found["held_out_accuracy"] = 100.0 * state.best_accuracy
    return found


def moved(x: Tensor, device: torch.device) -> Tensor:
    """Activations of the cache on the device, float32; a GPU copies while it still computes."""
    if device.type == "cuda":
        x = x.pin_memory().to(device, non_blocking=True)
    return x.to(device, torch.float32)


def _first_infinite(losses: Sequence[Tensor]) -> int | None:
    """Place of the first loss that is no finite number."""
    bad = torch.stack(list(losses)).isfinite().logical_not().nonzero()
    return int(bad[0]) if len(bad) else None


def _anybody(diverged: bool, parameters: Sequence[Tensor], world: int) -> bool:
    """Whether a rank has met a loss, or holds a weight, that is no finite number."""
    diverged = diverged or not all(torch.isfinite(weight).all() for weight in parameters)
    if world == 1:
        return diverged
    ranks = torch.tensor(float(diverged), device=parameters[0].device)
    dist.all_reduce(ranks)
    return bool(ranks > 0)


def _diverged(step: int, peak: float) -> UserError:
    return UserError(
        f"training diverged at step {step}, its weights are no finite numbers: lower the learning"
        f" rate, training.learning_rate or method.options.learning_rate (now {peak:g})"
    )


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
