"""Ray Train workers that stay: one run of Train, which trains stages as they come."""

from __future__ import annotations

import contextlib
import threading
import uuid
from typing import TYPE_CHECKING, Any

from archipelago.pipeline.settings import ClusterSettings
from archipelago.pipeline.store import Folder, RunFolder
from archipelago.pipeline.training.entry import enter
from archipelago.pipeline.training.spec import StageSpec
from archipelago.pipeline.training.stage_queue import Ending, StageQueue

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

FOLDER = "train"
PREFIX = "workers-"
PATIENCE_S = 20.0  # for workers without a stage to end


class TrainWorkers:
    """A long run of Ray Train, fed through a queue; it starts at once.

    Args:
        cluster: what it asks for.
        run: address of the run folder, where Train keeps its few files.

    Attributes:
        pending: stages that were submitted and not waited for.
    """

    def __init__(self, cluster: ClusterSettings, run: str) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.pending: set[int] = set()
        self._folder = RunFolder(run, read_only=True).folder.child(FOLDER)
        self._name = f"{PREFIX}{uuid.uuid4().hex[:8]}"
        # It must not die before the driver does.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(StageQueue).options(num_cpus=0, scheduling_strategy=here)
        self._queue: Any = actor.remote(cluster.train.num_workers, cluster.max_failures)
        self._thread = threading.Thread(
            target=self._work, args=(self._trainer(cluster),), name="fit", daemon=True
        )
        self._thread.start()

    def submit(self, spec: StageSpec) -> int:
        """Queue a stage; returns its number here."""
        import ray

        number = int(ray.get(self._queue.add.remote(spec.plain())))
        self.pending.add(number)
        return number

    def wait(self, number: int) -> Ending:
        """What became of a stage.

        The wait is Python's own: on the main thread Ray's would be deaf to signal handlers.
        """
        from ray.exceptions import RayActorError

        try:
            ending = self._queue.ended.remote(number).future().result()
        except RayActorError as error:
            ending = Ending("lost", _last_line(error))
        self.pending.discard(number)
        return ending

    def close(self) -> None:
        """Let the workers go; those in the middle of a stage end with the driver's Ray."""
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):
            ray.get(self._queue.close.remote(Ending("lost", "the run has ended")))
        if not self.pending:
            self._thread.join(PATIENCE_S)
        self._folder.delete_tree(self._name)

    def _work(self, trainer: TorchTrainer) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            trainer.fit()
            ending = Ending("lost", "the workers ended")
        except Exception as error:
            ending = Ending("lost", _last_line(error))
        with contextlib.suppress(RayError):  # the driver is ending
            ray.get(self._queue.close.remote(ending))

    def _trainer(self, cluster: ClusterSettings) -> TorchTrainer:
        import ray.train as rt
        from ray.train.torch import TorchConfig, TorchTrainer

        workers = cluster.train
        resources: dict[str, float] = {"CPU": workers.num_cpus}
        if workers.num_gpus:
            resources["GPU"] = workers.num_gpus
        if workers.memory_gib:
            resources["memory"] = workers.memory_gib * 2**30
        return TorchTrainer(
            enter,
            train_loop_config={"queue": self._queue},
            torch_config=TorchConfig(timeout_s=cluster.timeout_s),
            scaling_config=rt.ScalingConfig(
                num_workers=workers.num_workers,
                use_gpu=workers.num_gpus > 0,
                resources_per_worker=resources,
            ),
            run_config=rt.RunConfig(
                name=self._name,
                storage_path=self._folder.uri,
                failure_config=rt.FailureConfig(
                    max_failures=-1,  # the queue counts them, stage by stage
                    controller_failure_limit=max(1, cluster.max_failures),  # type: ignore[call-arg]
                ),
                logging_config=rt.LoggingConfig("WARNING"),
            ),
        )


def sweep(run: Folder) -> None:
    """Remove what runs of Train left behind whose driver was killed."""
    for name in run.list(f"{FOLDER}/{PREFIX}"):
        run.delete_tree(name)


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
