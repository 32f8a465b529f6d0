"""Run a pretraining where its settings say: in this process, or on workers of Ray Train.

Light: the controller of Ray Train imports this module and needs no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archipelago.pipeline.pretraining.settings import PretrainSettings


def enter(config: dict[str, Any]) -> None:
    """Where a worker of Ray Train begins."""
    from archipelago.pipeline.pretraining.worker import work

    work(config)


def pretrain(settings: PretrainSettings) -> Path:
    """Train, continuing what lies in `settings.out`; returns the folder of the model.

    Raises:
        UserError: there is no corpus.
        RuntimeError: the workers failed more often than they may.
    """
    from archipelago.pipeline.pretraining.worker import learn_here, model_folder

    if settings.workers.num_workers == 0:
        learn_here(settings)
    else:
        _on_ray(settings)
    return model_folder(settings)


def _on_ray(settings: PretrainSettings) -> None:
    import ray.train as rt
    from ray.train.torch import TorchConfig, TorchTrainer

    from archipelago.pipeline.pretraining.worker import attempts

    workers, folder = settings.workers, attempts(settings)
    folder.mkdir(parents=True, exist_ok=True)
    resources: dict[str, float] = {"CPU": workers.num_cpus}
    if workers.num_gpus:
        resources["GPU"] = workers.num_gpus
    if workers.memory_gib:
        resources["memory"] = workers.memory_gib * 2**30
    trainer = TorchTrainer(
        enter,
        train_loop_config={"settings": settings.model_dump_json()},
        torch_config=TorchConfig(timeout_s=3600),  # rank 0 prepares while the others wait
        scaling_config=rt.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.num_gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=rt.RunConfig(
            name=f"attempt-{len(list(folder.glob('attempt-*'))):03d}",
            storage_path=str(folder),
            failure_config=rt.FailureConfig(max_failures=2),
            checkpoint_config=rt.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        trainer.fit()
    except (rt.WorkerGroupError, rt.ControllerError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise RuntimeError(f"the workers failed, last: {reason}") from error
