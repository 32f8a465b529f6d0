"""Answers to many images: decoded by tasks, answered by a pool of actors, on Ray Data.

A task reads a part of the listing and passes on its units decoded, one a block; an actor holds one
learned model, answers a unit and writes its file. Only counts come back. What is in flight is
bounded by Ray Data, whatever the size of the input.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray

from archipelago.actors.encoders import worker_threads
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.prediction.answers import Predictor, Question
from archipelago.pipeline.prediction.output import Output
from archipelago.pipeline.prediction.reading import Decoded, decode_part
from archipelago.pipeline.prediction.units import Part, Unit
from archipelago.pipeline.settings import ClusterSettings, Settings, WorkerSettings
from archipelago.pipeline.store.folder import Folder
from archipelago.pipeline.streams.execution import quiet_context

log = logging.getLogger("archipelago")

HANG = 5  # times `cluster.timeout_s`: a unit takes minutes where a large model runs on a CPU
PICKLED, UNIT, PIXELS = "part", "unit", "pixels"


@dataclass(frozen=True)
class Spec:
    """What answers, and where to: all that a worker needs.

    Attributes:
        run: URI of the run folder.
        manifest: which version of its model; 0 = frozen CLIP.
        question: what is asked.
        output: URI of the folder of answers.
        size: side of the backbone's input, in pixels.
        max_pixels: images whose header declares more are not decoded.
        batch_size: images in one pass.
        device: `auto`, `cpu` or `cuda`.
        threads: of torch for each model.
    """

    run: str
    manifest: int
    question: Question
    output: str
    size: int
    max_pixels: int
    batch_size: int
    device: str
    threads: int


class Written(NamedTuple):
    """A unit that is answered: its images, and how many of them could not be read."""

    images: int
    errors: int


class Answerer:
    """A learned model that answers units and writes their files; opened at the first."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._output = Output(Folder(spec.output))
        self._predictor: Predictor | None = None

    def answer(self, decoded: Decoded) -> Written:
        """Answer a unit and write its file."""
        self._output.write(decoded.unit, self._model().table(decoded))
        return Written(decoded.unit.images, sum(map(bool, decoded.errors)))

    def _model(self) -> Predictor:
        # Not in __init__: what is wrong with a model is then an error of a task, and is told once.
        if self._predictor is None:
            import torch

            spec = self._spec
            torch.set_num_threads(spec.threads)
            model = LearnedModel.open(spec.run, spec.manifest, spec.device)
            self._predictor = Predictor(model, spec.question, spec.batch_size)
        return self._predictor


class AnswerActor(Answerer):
    """The same for blocks of Ray Data: decoded units, or parts that are decoded here too."""

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """A row for each unit that is written."""
        if PICKLED in batch.column_names:
            units = _decoded(batch, self._spec)
        else:
            units = iter([_from_block(batch)])
        for decoded in units:
            written = self.answer(decoded)
            yield pa.table({key: [value] for key, value in written._asdict().items()})


def answer_units(
    parts: Sequence[Part], wanted: Collection[str], spec: Spec, cluster: ClusterSettings
) -> Iterator[Written]:
    """Answer the wanted units of some parts and write their files, in any order.

    Args:
        parts: of a listing.
        wanted: names of units.
        spec: what answers.
        cluster: how many workers with how much; `encode.num_workers=0` = in this process.

    Raises:
        UserError: the input or the model is not what it should be.
    """
    if not cluster.encode.num_workers:
        answerer = Answerer(spec)
        for part in parts:
            for decoded in decode_part(part, wanted, spec.size, spec.max_pixels):
                yield answerer.answer(decoded)
        return
    with ray.data.DataContext.current(_context(cluster)):
        rows = _dataset(parts, wanted, spec, cluster)
    for row in rows.iter_rows():
        yield Written(int(row["images"]), int(row["errors"]))


def predict_cluster(settings: Settings) -> ClusterSettings:
    """The cluster's settings with what prediction uses of it: no training workers."""
    cluster = settings.cluster
    none: dict[str, WorkerSettings] = {"train": cluster.train.model_copy(update={"num_workers": 0})}
    if not cluster.encode.num_workers:
        none["data"] = cluster.data.model_copy(update={"num_workers": 0})
    return cluster.model_copy(update=none)


def threads(settings: Settings) -> int:
    """Of torch for each model."""
    return worker_threads(settings, "encode")


def _context(cluster: ClusterSettings) -> Any:
    context = quiet_context(HANG * cluster.timeout_s)
    context.target_max_block_size = 1  # a unit a block, so that one is answered while one is read
    return context


def _dataset(
    parts: Sequence[Part], wanted: Collection[str], spec: Spec, cluster: ClusterSettings
) -> Any:
    items = []
    for part in parts:
        mine = [unit.name for unit in part.units if unit.name in wanted]
        if mine:
            items.append({PICKLED: ray.cloudpickle.dumps((part, mine))})
    data, pool = cluster.data, cluster.encode
    # What a lost worker did is done again, as often as it takes; the time-out bounds it.
    dataset: Any = ray.data.from_items(items, override_num_blocks=len(items))
    if data.num_workers:
        dataset = dataset.map_batches(
            _read,
            fn_kwargs={"spec": spec},
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=data.num_workers),
            **_resources(data),
        )
    return dataset.map_batches(
        AnswerActor,
        fn_constructor_args=(spec,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=pool.num_workers),
        num_gpus=pool.num_gpus,
        **_resources(pool),
    )


def _resources(workers: WorkerSettings) -> Mapping[str, Any]:
    found: dict[str, Any] = {"num_cpus": workers.num_cpus}
    if workers.memory_gib:
        found["memory"] = int(workers.memory_gib * 2**30)
    return found


# -- units as blocks -----------------------------------------------------------------------------


def _read(batch: pa.Table, spec: Spec) -> Iterator[pa.Table]:
    for decoded in _decoded(batch, spec):
        yield _to_block(decoded)


def _decoded(batch: pa.Table, spec: Spec) -> Iterator[Decoded]:
    for value in batch[PICKLED]:
        part, wanted = ray.cloudpickle.loads(value.as_py())
        yield from decode_part(part, set(wanted), spec.size, spec.max_pixels)


def _to_block(decoded: Decoded) -> pa.Table:
    """One row; pixels are not copied."""
    pixels = np.ascontiguousarray(decoded.pixels)
    ends = np.array([0, pixels.nbytes], np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(pixels)]
    about = ray.cloudpickle.dumps((decoded.unit, decoded.paths, decoded.errors, pixels.shape))
    return pa.table(
        {
            UNIT: pa.array([about], pa.large_binary()),
            PIXELS: pa.Array.from_buffers(pa.large_binary(), 1, buffers),
        }
    )


def _from_block(block: pa.Table) -> Decoded:
    """Of one row, its pixels copied: torch wants them writable."""
    about: tuple[Unit, list[str], list[str], tuple[int, ...]]
    about = ray.cloudpickle.loads(block[UNIT][0].as_py())
    unit, paths, errors, shape = about
    pixels = np.frombuffer(block[PIXELS][0].as_buffer(), np.uint8).reshape(shape)
    return Decoded(unit, paths, errors, pixels.copy())
