"""The training loop on one rank: the same code in process and under Ray Train.

The image tower is frozen; projector and language model learn from cached patch features.

Shapes: B lessons, T tokens, P patches, D width of the tower, n answers' tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipelago.pipeline.pretraining.lessons import Batch, Lessons
from archipelago.pipeline.pretraining.settings import PretrainSettings

Save = Callable[[dict[str, Any], "State | None"], None]
Features = Callable[[np.ndarray], np.ndarray]


@dataclass
class State:
    """What a checkpoint holds; batches follow from the step."""

    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)


class Student(nn.Module):
    """Projector and language model of a vision-language model; reads features instead of images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.language = model.model.language_model
        self.patch = model.config.image_token_id

    def forward(self, batch: Batch, features: Tensor) -> Tensor:
        """Mean cross-entropy of the answers' tokens.

        Args:
            batch: B lessons.
            features: (n, P, D) patches of the pictures of those lessons that have one.
        """
        embedding = self.language.get_input_embeddings()
        x_BTD = embedding(batch.ids)
        if len(features):
            tokens = self.projector(features).to(x_BTD.dtype).flatten(0, 2)
            x_BTD = x_BTD.masked_scatter((batch.ids == self.patch)[..., None], tokens)
        out = self.language(inputs_embeds=x_BTD, attention_mask=batch.mask, use_cache=False)
        asked = batch.labels[:, 1:] >= 0
        logits_nV = out.last_hidden_state[:, :-1][asked] @ embedding.weight.T
        return F.cross_entropy(logits_nV.float(), batch.labels[:, 1:][asked])


def rate(step: int, settings: PretrainSettings) -> float:
    """Linear warm-up, then a cosine to a fiftieth of the peak."""
    warmup = min(settings.warmup, settings.steps // 2)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by their name in the model."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def train(
    settings: PretrainSettings,
    model: Any,
    lessons: Lessons,
    features: Features,
    *,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    rank: int = 0,
    world: int = 1,
    wrap: Callable[[Student], nn.Module] = lambda student: student,
    resume: State | None = None,
    save: Save = lambda metrics, state: None,
) -> State:
    """Train until `settings.steps`; the model holds the averaged weights on return.

    Args:
        settings: lengths and rates.
        model: with a frozen tower; moved to `device`.
        lessons: draws the batches.
        features: reads the (n, P, D) patches of the lessons' pictures by row.
        device: where to compute.
        bf16: mixed precision.
        rank: this worker.
        world: number of workers; the batch is split evenly among them.
        wrap: makes the student data-parallel.
        resume: a state to continue from.
        save: called with metrics, and every `checkpoint_every` steps with a state to keep.
    """
    device = torch.device(device)
    model.to(device).train()
    if bf16 and device.type == "cpu":  # there its backward takes half the time of the fused kernel
        model.model.language_model.set_attn_implementation("eager")
    weights = trained(model)
    decays = [p for p in weights.values() if p.ndim > 1]
    others = [p for p in weights.values() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decays, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        foreach=True,
    )
    state = resume or State()
    average = {n: p.detach().clone() for n, p in weights.items()}
    if resume is not None:
        _fill(weights, resume.weights)
        average = {n: t.to(device) for n, t in resume.average.items()}
        optimizer.load_state_dict(resume.optimizer)
    student = wrap(Student(model))
    clock, seen, losses = time.perf_counter(), 0, []
    for step in range(state.step, settings.steps):
        batch = lessons.batch(step, rank, max(1, settings.batch_size // world))
        for group in optimizer.param_groups:
            group["lr"] = rate(step, settings)
        batch.ids, batch.labels = batch.ids.to(device), batch.labels.to(device)
        batch.mask = batch.mask.to(device)
        shown = torch.from_numpy(features(batch.rows).astype(np.float32)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = student(batch, shown)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.clip_norm > 0:
            nn.utils.clip_grad_norm_(weights.values(), settings.clip_norm)
        optimizer.step()
        keep = min(settings.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, parameter in weights.items():
                average[name].lerp_(parameter, 1 - keep)
        losses.append((batch.labels.shape[0], float((batch.labels >= 0).sum()), loss.item()))
        seen += len(batch.ids) * world
        done = step + 1
        last = done == settings.steps
        if done % settings.report_every == 0 or done % settings.checkpoint_every == 0 or last:
            speed = seen / (time.perf_counter() - clock)
            metrics = {"step": done, **_split(losses), "lessons_per_second": speed}
            losses = []
            kept = None
            if done % settings.checkpoint_every == 0 or last:
                kept = State(done, _copy(weights), _copy(average), optimizer.state_dict())
                state = kept
            save(metrics, kept)
    _fill(weights, state.average)
    model.eval()
    return state


def _split(losses: list[tuple[int, float, float]]) -> dict[str, float]:
    """Mean loss of caption and of choice batches (these have two answer tokens a lesson)."""
    choices = [loss for rows, tokens, loss in losses if tokens == 2 * rows]
    captions = [loss for rows, tokens, loss in losses if tokens != 2 * rows]
    found = {"caption_loss": captions, "choice_loss": choices}
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def _copy(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def _fill(weights: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    if weights.keys() != tensors.keys():
        raise ValueError("the checkpoint is of another model")
    for name, parameter in weights.items():
        parameter.copy_(tensors[name])
