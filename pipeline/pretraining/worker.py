"""One pretraining from pictures to a saved model: in this process, or one rank of Ray Train."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from archipelago.pipeline.model.kernels import multiplies_bf16, resolve_device
from archipelago.pipeline.pretraining import checkpoints
from archipelago.pipeline.pretraining.build import image_prefix, save
from archipelago.pipeline.pretraining.lessons import Lessons
from archipelago.pipeline.pretraining.loop import Save, State, train
from archipelago.pipeline.pretraining.prepare import load_prepared, prepare
from archipelago.pipeline.pretraining.settings import PretrainSettings

log = logging.getLogger(__name__)
KEPT = 2  # checkpoints of one attempt


def attempts(settings: PretrainSettings) -> Path:
    """Where the attempts of a training write their checkpoints."""
    return Path(str(settings.out)) / "attempts"


def model_folder(settings: PretrainSettings) -> Path:
    """Where the trained model comes to lie."""
    return Path(str(settings.out)) / "model"


def learn(
    settings: PretrainSettings,
    keep: Save,
    *,
    rank: int = 0,
    world: int = 1,
    device: str | None = None,
    wrap: Callable[[Any], torch.nn.Module] = lambda student: student,
) -> None:
    """Prepare if need be, go on from the newest checkpoint, train, and write the model.

    Args:
        settings: with `out`, a folder that all ranks see.
        keep: stores metrics and states.
        rank: this worker; rank 0 prepares and writes.
        world: number of workers.
        device: where to compute; None = as the settings say.
        wrap: makes the student data-parallel.

    Raises:
        UserError: there is no corpus.
    """
    if settings.workers.threads:
        torch.set_num_threads(settings.workers.threads)
    where = device or resolve_device(settings.device)
    folder = Path(str(settings.out)) / "prepared"
    if rank == 0:
        prepare(settings, folder, where)
    if world > 1:
        dist.barrier()
    data, model, processor = load_prepared(folder)
    torch.manual_seed(settings.seed)
    rows = np.array(data.train)
    lessons = Lessons(
        [data.known[row] for row in rows],
        processor.tokenizer,
        image_prefix(model),
        settings.lessons,
        settings.seed,
    )
    resume = checkpoints.newest(attempts(settings))
    if resume is not None and rank == 0:
        log.info("continues after step %d", resume.step)
    train(
        settings,
        model,
        lessons,
        lambda wanted: data.features[rows[wanted]],
        device=where,
        bf16=_mixed(settings, torch.device(where)),
        rank=rank,
        world=world,
        wrap=wrap,
        resume=resume,
        save=keep,
    )
    if rank == 0:
        save(model_folder(settings), model.cpu(), processor)


def _mixed(settings: PretrainSettings, device: torch.device) -> bool:
    if settings.precision == "auto":
        return multiplies_bf16(device.type)
    return settings.precision == "bf16"


def learn_here(settings: PretrainSettings) -> None:
    """The whole training in this process; checkpoints have the form that Ray Train writes."""
    folder = attempts(settings)
    place = folder / f"attempt-{len(list(folder.glob('attempt-*'))):03d}"

    def keep(metrics: dict[str, Any], state: State | None) -> None:
        log.info("%s", json.dumps({k: round(v, 4) for k, v in metrics.items()}))
        if state is not None:
            checkpoints.save(place / f"checkpoint-{state.step:06d}", state)
            for old in sorted(place.glob("checkpoint-*"))[:-KEPT]:
                shutil.rmtree(old)

    learn(settings, keep)


def work(config: dict[str, Any]) -> None:
    """Body of one worker of Ray Train; `config` holds the settings as JSON."""
    import ray.train as rt
    from ray.train.torch import get_device

    settings = PretrainSettings.model_validate_json(config["settings"])
    logging.getLogger("archipelago").setLevel(logging.INFO)
    context = rt.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()

    def keep(metrics: dict[str, Any], state: State | None) -> None:
        if rank != 0:
            rt.report(metrics, checkpoint=None)
            return
        log.info("%s", json.dumps({k: round(v, 4) for k, v in metrics.items()}))
        with tempfile.TemporaryDirectory() as temporary:
            if state is None:
                return rt.report(metrics, checkpoint=None)
            checkpoints.save(Path(temporary), state)
            rt.report(metrics, checkpoint=rt.Checkpoint.from_directory(temporary))

    device = str(get_device()) if settings.workers.num_gpus else None
    wrap = torch.nn.parallel.DistributedDataParallel
    plain: Callable[[Any], torch.nn.Module] = lambda student: student  # noqa: E731
    learn(settings, keep, rank=rank, world=world, device=device, wrap=wrap if world > 1 else plain)
