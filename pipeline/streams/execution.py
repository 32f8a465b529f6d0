"""Runs shard jobs: in this process, or as one Ray Data execution over the cluster."""

from __future__ import annotations

import pickle
from collections.abc import Generator
from typing import Any

from pyarrow import ArrowException

from archipelago.pipeline.settings import ClusterSettings
from archipelago.pipeline.streams.shards import ShardJob, ShardResult, write_shard

Outcome = ShardResult | str  # or the reason why the chunk could not be read or written


def run_jobs(
    jobs: list[ShardJob], cluster: ClusterSettings, use_ray: bool
) -> Generator[tuple[int, Outcome], None, None]:
    """Yield (position in `jobs`, outcome) as they finish, in any order."""
    if use_ray and jobs and cluster.data.num_workers:
        yield from _on_ray(jobs, cluster)
    else:
        for position, job in enumerate(jobs):
            yield position, _outcome(job)


def _on_ray(
    jobs: list[ShardJob], cluster: ClusterSettings
) -> Generator[tuple[int, Outcome], None, None]:
    import ray

    if not ray.is_initialized():
        raise RuntimeError("Ray is not initialised; call ray.init first, or pass use_ray=False")
    context = quiet_context(cluster.timeout_s)
    resources: dict[str, Any] = {"num_cpus": cluster.data.num_cpus}
    if cluster.data.memory_gib:
        resources["memory"] = int(cluster.data.memory_gib * 2**30)
    items = [{"position": i, "job": ray.cloudpickle.dumps(job)} for i, job in enumerate(jobs)]
    with ray.data.DataContext.current(context):  # the data set keeps it, this process does not
        # One job a block and so one a task. Lost tasks run again, bounded by the time-out.
        tasks = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _task, compute=ray.data.TaskPoolStrategy(size=cluster.data.num_workers), **resources
        )
    for row in tasks.iter_rows():
        yield int(row["position"]), pickle.loads(row["outcome"])


def quiet_context(timeout_s: float) -> Any:
    """Ray Data's context for an execution of ours: it says nothing, and a hang is an error.

    Args:
        timeout_s: without progress, after which it is one.
    """
    import ray

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = timeout_s
    return context


def _task(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "position": row["position"],
        "outcome": pickle.dumps(_outcome(pickle.loads(row["job"]))),
    }


def _outcome(job: ShardJob) -> Outcome:
    try:
        return write_shard(job)
    except (OSError, ArrowException, ValueError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
