"""The images and prompts of a stage on one rank: which rows train, which are held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from archipelago.pipeline.methods import Adapter, Method
from archipelago.pipeline.streams import DenseTable, ImageTable, PreparedDomain, stratified_fold
from archipelago.pipeline.streams.folds import check_held_out
from archipelago.pipeline.training.dense import dense_folds, dense_objectives
from archipelago.pipeline.training.objectives import Classification, Objective, Prompts
from archipelago.pipeline.training.spec import StageSpec
from archipelago.pipeline.training.trunk import TrunkCache
from archipelago.pipeline.training.views import Views


def folds(spec: StageSpec, domain: PreparedDomain) -> tuple[ImageTable, np.ndarray, np.ndarray]:
    """A task's training split: its table, the rows to train on, the held-out rows."""
    settings = spec.settings
    table = ImageTable.open(domain.tables["train"])
    rows, held = stratified_fold(
        table.labels, settings.stream.held_out, settings.seed, domain.name, table.groups
    )
    return table, rows, held


def training_rows(spec: StageSpec, domain: PreparedDomain) -> int:
    """Rows that a task trains on, over all workers."""
    if domain.kind is None:
        return len(folds(spec, domain)[1])
    table = DenseTable.open(domain.tables["train"])
    return int(table.usable(domain.name)[dense_folds(spec.settings, table)[0]].sum())


def load_data(spec: StageSpec, method: Method, rank: int, world: int) -> list[Objective]:
    """The tasks of a stage with this rank's rows, the held-out folds and the prompts."""
    dense = dense_objectives(spec.settings, spec.domains, method, rank, world)
    return [
        dense.get(domain.name) or _classification(spec, domain, method, rank, world)
        for domain in spec.domains
    ]


def _classification(
    spec: StageSpec, domain: PreparedDomain, method: Method, rank: int, world: int
) -> Classification:
    settings, backbone = spec.settings, method.backbone
    table, rows, held = folds(spec, domain)
    check_held_out(domain.name, rows, held, table.groups)
    mine = rows[rank::world]
    views = Views(settings.training, settings.seed, domain.name, len(table))
    first_image, first_text = method.first_blocks
    options = settings.training
    budget = options.cache_gib / len(spec.domains)

    def cache(chosen: np.ndarray, count: int) -> TrunkCache:
        share = budget * len(chosen) / max(1, len(mine) + len(held))
        return TrunkCache(backbone, first_image, table.images, chosen, views, count, share)

    text = Prompts(backbone, first_text, list(domain.classes), list(domain.templates))
    return Classification(
        cache(mine, options.views),
        torch.from_numpy(table.labels[mine].copy()),
        cache(held, 0),
        torch.from_numpy(table.labels[held].copy()),
        text,
        backbone,
        domain.name,
        settings.training.negatives,
    )


def attach_heads(adapter: Adapter, objectives: Sequence[Objective]) -> None:
    """Let the heads of the tasks that have one train with the group.

    Where no task reads class names, nothing that adapts them trains: data-parallel workers would
    wait for its gradients.
    """
    if not any(task.pooled for task in objectives):
        adapter.rest_text()
    heads = {str(number): task.head() for number, task in enumerate(objectives)}
    found = {number: head for number, head in heads.items() if head is not None}
    if found:
        adapter.heads = nn.ModuleDict(found)
