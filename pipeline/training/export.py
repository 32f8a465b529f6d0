"""What a trained stage leaves: its group, probes, class features, temperatures, use of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from archipelago.pipeline.dense import stored_head
from archipelago.pipeline.methods import Adapter, Method
from archipelago.pipeline.model.watch import Watch, describe_experts
from archipelago.pipeline.streams import PreparedDomain
from archipelago.pipeline.training.data import folds
from archipelago.pipeline.training.dense import DenseObjective
from archipelago.pipeline.training.objectives import Classification, Objective, class_features
from archipelago.pipeline.training.spec import Outcome, StageSpec

PROBES, DENSE_PROBES = 8, 2
TEMPERATURES = np.geomspace(0.25, 4.0, 33)


@torch.no_grad()
def outcome_of(
    spec: StageSpec, method: Method, adapter: Adapter, objectives: Sequence[Objective]
) -> Outcome:
    """What rank 0 brings home, the adapter at its best weights.

    Args:
        spec: of the stage.
        method: gives frozen CLIP.
        adapter: trained.
        objectives: the stage's tasks with their held-out folds.
    """
    group = adapter.export()
    for task in objectives:
        head = task.head()
        if head is not None:
            group |= stored_head(task.name, head)
    facts: dict[str, Any] = {
        "parameters": sum(t.numel() for k, t in group.items() if t.is_floating_point()),
        "temperatures": {},
    }
    outcome = Outcome(group, {}, {}, facts)
    watch = adapter.watch = Watch(len(objectives))
    for number, (domain, task) in enumerate(zip(spec.domains, objectives, strict=True)):
        if isinstance(task, Classification):
            _export_classes(outcome, spec, method, adapter, domain, task, number)
        elif isinstance(task, DenseObjective):
            _export_head(outcome, adapter, task, number)
    adapter.watch = None
    facts["experts"] = describe_experts(watch, spec.settings.experts.shared_count)
    facts["temperature"] = next(iter(facts["temperatures"].values()))
    return outcome


def _export_classes(
    outcome: Outcome,
    spec: StageSpec,
    method: Method,
    adapter: Adapter,
    domain: PreparedDomain,
    task: Classification,
    number: int,
) -> None:
    """Probes, class features and temperature of one task."""
    backbone, watch = method.backbone, adapter.watch
    table, rows, fold = folds(spec, domain)
    probes = rows[np.linspace(0, len(rows) - 1, min(PROBES, len(rows))).astype(int)]
    images = table.images(probes)
    with backbone.kernels.exact():
        adapter.watch = None
        x_BLD = method.trunk(backbone.normalise(images))
        reference_BF = adapter.image(x_BLD, number)
        adapter.watch = watch  # the expert load is that of the held-out fold and the class names
        u_CF = class_features(adapter, task.text, number)
        reference = backbone.logit_scale * reference_BF @ u_CF.T
        parts = [
            backbone.logit_scale
            * adapter.image(x.to(backbone.device, torch.float32), number)
            @ u_CF.T
            for x in (task.held_x[at : at + 128] for at in range(0, len(task.held_y), 128))
        ]
    held = torch.cat(parts).cpu()
    losses = [F.cross_entropy(held / float(t), task.held_y).item() for t in TEMPERATURES]
    outcome.probe |= {
        f"{domain.name}/images": torch.from_numpy(images.copy()),
        f"{domain.name}/labels": torch.from_numpy(table.labels[probes].copy()),
        f"{domain.name}/logits": reference.cpu(),
        f"{domain.name}/rows": torch.from_numpy(probes.copy()),
        f"{domain.name}/held_rows": torch.from_numpy(fold.copy()),
        f"{domain.name}/held_logits": held,
    }
    outcome.classes[domain.name] = u_CF.cpu()
    temperature = float(TEMPERATURES[int(np.argmin(losses))])
    outcome.facts["temperatures"][domain.name] = temperature


def _export_head(outcome: Outcome, adapter: Adapter, task: DenseObjective, number: int) -> None:
    """Probes of one dense task: held-out images with the head's outputs."""
    where = np.arange(min(DENSE_PROBES, len(task.shared.held)))
    watch, adapter.watch = adapter.watch, None
    output = task.output(adapter, where, number)
    adapter.watch = watch
    task.look(adapter, number)
    images = task.shared.table.images(task.shared.held[where])
    outcome.probe[f"{task.name}/images"] = torch.from_numpy(images)
    outcome.probe[f"{task.name}/output"] = output.cpu()
    outcome.facts["temperatures"][task.name] = 1.0
