"""A run's model on test images of a stream, its own or another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from archipelago.actors.arguments import cache_dir
from archipelago.pipeline.config import load
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.evaluation.console import percent
from archipelago.pipeline.evaluation.remeasure import Remeasured, remeasure
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.pace import Pace
from archipelago.pipeline.records.evaluation import read_evaluation
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import open_stream, prepare


@dataclass(frozen=True)
class Measurement:
    """What a run's model reaches, and what its report says of the same domains.

    Attributes:
        run: the run.
        rows: a domain each.
        reported: percent with the domain given, after the run's last stage.
    """

    run: RunFolder
    rows: list[Remeasured]
    reported: dict[str, float]

    def lost(self) -> dict[str, float]:
        """Points that each learned domain has less than reported."""
        return {
            row.task: self.reported[row.task] - row.given
            for row in self.rows
            if row.learned and row.task in self.reported
        }

    def write(self, name: str) -> None:
        """Keep the figures in the run folder."""
        rows = [asdict(row) | {"reported": self.reported.get(row.task)} for row in self.rows]
        RunFolder(self.run.uri).folder.write_json(name, {"rows": rows})


def measure_run(
    run_dir: str, words: Sequence[str], manifest: int | None, device: str
) -> Measurement:
    """Measure a run's model on a stream's test splits.

    Args:
        run_dir: the run.
        words: settings of the stream; none = the run's own.
        manifest: which version; None = the newest.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: not a run, or its stream cannot be read.
    """
    model = LearnedModel.open(run_dir, manifest, device)
    run, own = model.runtime.run, model.runtime.settings
    others = [word for word in words if not word.startswith(("stream", "cluster"))]
    if others:
        raise UserError(f"{others[0]}: the run has its own; give settings of stream and cluster")
    given = load(words)
    changed = any(word.startswith("stream") for word in words)
    settings = own.model_copy(
        update={
            "run_dir": run.uri,
            "cluster": given.cluster,
            "stream": given.stream if changed else own.stream,
        }
    )
    domains = open_stream(settings.stream, settings.seed, dense=True)
    domains = [domain for domain in domains if domain.kind is None]
    if not domains:
        raise UserError("stream: holds dense tasks alone; evaluate measures classes of images")
    prepared = prepare(
        domains,
        size=model.runtime.backbone.image_size,
        run=run.uri,
        cache_dir=cache_dir(settings),
        cache_gib=settings.cluster.cache_gib,
        cluster=settings.cluster,
        max_pixels=settings.stream.max_pixels,
        use_ray=False,
    )
    pace = Pace("test images", sum(int(domain.counts["test"]) for domain in prepared))
    rows = [remeasure(model, domain, pace.step) for domain in prepared]
    return Measurement(run, rows, {} if changed else _reported(run))


def _reported(run: RunFolder) -> dict[str, float]:
    stages = [ref.stage for ref in run.current_groups()]
    record = read_evaluation(run.folder, max(stages)) if stages else None
    if record is None:
        return {}
    accuracy = record["accuracy"]["mtil_given"]
    pairs = zip(record["tasks"], accuracy, strict=True)
    return {task: value for task, value in pairs if value is not None}


def remeasured_table(found: Measurement) -> Table:
    """Domains as rows, percent."""
    table = Table(title="percent of the test images", header_style="bold")
    table.add_column("domain", no_wrap=True)
    for name in ("images", "domain given", "reported", "all classes", "recognised", "unseen"):
        table.add_column(name, justify="right")
    for row in found.rows:
        name = row.task if row.learned else f"{row.task} (not learned)"
        table.add_row(
            name,
            f"{row.images:,}",
            percent(row.given),
            percent(found.reported.get(row.task)),
            percent(row.free),
            percent(row.recognised),
            percent(row.unseen),
        )
    return table
