"""Do the batch, the cluster and the data fit? Asked before anything starts, so that nothing hangs
and nothing is learned that would be wrong.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import ray

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods.base import method_class
from archipelago.pipeline.records.group import read_card
from archipelago.pipeline.settings import ClusterSettings, Settings, WorkerSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import PreparedDomain
from archipelago.pipeline.streams.changed import check_unchanged
from archipelago.pipeline.streams.coverage import check_coverage


def check_batch(settings: Settings) -> None:
    """Raises UserError when the batch cannot be split evenly over the training workers."""
    batch, workers = settings.training.batch_size, settings.cluster.train.num_workers
    if workers and batch % workers:
        lower = batch - batch % workers
        near = f"{lower} or {lower + workers}" if lower else f"{workers}"
        raise UserError(
            f"training.batch_size={batch}: does not divide by cluster.train.num_workers={workers};"
            f" give {near}"
        )


def check_resources(cluster: ClusterSettings, identify: bool = False) -> None:
    """Compare what a run holds at once with what the cluster has.

    Args:
        cluster: what the run asks for.
        identify: whether replicas of a multimodal model run beside it.

    Raises:
        UserError: workers would share a card; or not enough CPUs or GPUs in all, or one worker fits
            no node, after `cluster.wait_s` seconds.
    """
    shared = _shared_card(cluster.train)
    if shared is not None:
        raise UserError(shared)
    deadline = time.monotonic() + cluster.wait_s
    while True:
        problem = _problem(cluster, identify)
        if problem is None:
            return
        if time.monotonic() >= deadline:
            raise UserError(problem)
        time.sleep(1.0)


def check_data(
    run: RunFolder, settings: Settings, prepared: Sequence[PreparedDomain], *, reference: bool
) -> None:
    """Can this be learned, and is what is learned already still of this data?

    Args:
        run: the run folder, locked.
        settings: the run's.
        prepared: the decoded stream.
        reference: whether another run has looked at the same data before.

    Raises:
        UserError: in words, before anything is trained.
    """
    method = method_class(settings.method.name)
    if not reference:
        stream = settings.stream
        check_coverage(prepared, stream.held_out, settings.seed, holds_out=method.holds_out)
    if method.learns:
        refs = run.completed_stages().values()
        cards = [read_card(run, ref) for ref in refs]
        check_unchanged(cards, prepared, run.folder.shown())


def _shared_card(train: WorkerSettings) -> str | None:
    """Workers that would share a card: NCCL refuses it, minutes later and not in these words."""
    if train.num_workers < 2 or train.num_gpus == int(train.num_gpus):
        return None
    return (
        f"cluster.train.num_gpus={train.num_gpus:g}: two of {train.num_workers} training workers"
        " may get the same card, which data-parallel training does not allow; give whole cards, or"
        " cluster.train.num_workers=1"
    )


def _problem(cluster: ClusterSettings, identify: bool) -> str | None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    lanes = {"num_workers": cluster.train.num_workers * cluster.train.lanes}
    kinds: dict[str, WorkerSettings] = {
        "train": cluster.train.model_copy(update=lanes),
        "encode": cluster.encode,
    }
    if identify:
        pool = cluster.identify
        kinds["identify"] = WorkerSettings(
            num_workers=pool.min_replicas, num_cpus=pool.num_cpus, num_gpus=pool.num_gpus
        )
    for resource, attribute in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        total = sum(node.get(resource, 0.0) for node in nodes)
        held = {name: w.num_workers * getattr(w, attribute) for name, w in kinds.items()}
        held["data"] = getattr(cluster.data, attribute) if cluster.data.num_workers else 0.0
        if sum(held.values()) > total + 1e-6:
            parts = " + ".join(f"{name} {value:g}" for name, value in held.items() if value)
            return (
                f"cluster: the run holds {sum(held.values()):g} {resource} at once ({parts}), the"
                f" cluster has {total:g}; lower cluster.*.{attribute} or num_workers, or add nodes"
            )
        largest = max((node.get(resource, 0.0) for node in nodes), default=0.0)
        for name, worker in kinds.items():
            problem = _unfit(name, worker, attribute, resource, largest)
            if problem is not None:
                return problem
    return None


def _unfit(
    name: str, worker: WorkerSettings, attribute: str, resource: str, largest: float
) -> str | None:
    wanted = getattr(worker, attribute)
    if worker.num_workers == 0 or wanted <= largest + 1e-6:
        return None
    return (
        f"cluster.{name}.{attribute}: one worker wants {wanted:g} {resource}, the largest node"
        f" has {largest:g}"
    )
