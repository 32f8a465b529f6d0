"""Train a small vision-language model that says what kind of picture it sees.

    python jobs/pretrain.py pictures.corpus=/data/corpus out=/data/mllm
    python jobs/pretrain.py pictures.corpus=/data/corpus out=/data/mllm workers.num_workers=2
    python jobs/pretrain.py exam out=/data/mllm /data/domains

The first trains in this process, the second on workers of Ray Train; both go on from what lies in
`out`, leave the model in `out/model` and print figures on pictures that were held out. The third
shows how well the model of `out` tells domains apart by its own descriptions of them: those of the
embedded stream, or of a folder of parquet domains. `conf/pretrain.yaml` has all settings.
Exit codes: 0 done, 1 failure, 2 a mistake of the user's.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from archipelago.actors.cluster import JOB, wanted_address
from archipelago.actors.environment import NO_IDLE_WORKERS
from archipelago.actors.exits import exit_codes
from archipelago.actors.local_ray import start_local
from archipelago.pipeline.errors import EXIT_DONE, UserError
from archipelago.pipeline.pretraining.launch import pretrain
from archipelago.pipeline.pretraining.settings import PretrainSettings, load_settings


@exit_codes("pretrain", "pretrain failed; the same command continues from the last checkpoint")
def main(arguments: Sequence[str]) -> int:
    """Train, or examine; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if arguments and arguments[0] == "exam":
        roots = [a for a in arguments[1:] if "=" not in a]
        settings = _settings([a for a in arguments[1:] if "=" in a])
        _examine(settings, roots[0] if roots else None)
    else:
        settings = _settings(arguments)
        _connect(settings)
        folder = pretrain(settings)
        _figures(settings, folder)
    return EXIT_DONE


def _settings(arguments: Sequence[str]) -> PretrainSettings:
    settings = load_settings(arguments)
    if settings.out is None:
        raise UserError("out: must be given, as out=DIR, a folder that all workers see")
    return settings.model_copy(update={"out": str(Path(settings.out).expanduser().absolute())})


def _connect(settings: PretrainSettings) -> None:
    """The cluster of the submitted job, else a local Ray; none for training in process."""
    if settings.workers.num_workers == 0:
        return
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = wanted_address(None)
    if address or JOB in os.environ:
        ray.init(address=address or "auto", logging_level=logging.WARNING)
    else:
        os.environ.setdefault(*NO_IDLE_WORKERS)
        needed = settings.workers.num_workers * settings.workers.num_cpus
        start_local(
            num_cpus=max(2, round(needed + 1)),
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            logging_level=logging.WARNING,
        )


def _figures(settings: PretrainSettings, folder: Path) -> None:
    from archipelago.pipeline.pretraining.build import load
    from archipelago.pipeline.pretraining.exam import Examiner, held_out, held_out_exam

    images, known = held_out(settings)
    found = held_out_exam(Examiner(*load(folder)), images, known, settings.seed)
    table = Table(title=f"{folder}: {len(known)} held-out pictures")
    for name in found:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:.1f}" for value in found.values()))
    Console().print(table)


def _examine(settings: PretrainSettings, root: str | None) -> None:
    from archipelago.pipeline.pretraining.build import load
    from archipelago.pipeline.pretraining.exam import Examiner, domain_exam, read_domains
    from archipelago.pipeline.pretraining.worker import model_folder

    where = model_folder(settings)
    if not where.is_dir():
        where = Path(str(settings.out))
    domains = read_domains(root, settings.seed, settings.exam.few, settings.exam.tests)
    found = domain_exam(Examiner(*load(where)), domains)
    table = Table(title="Likelihood of the model's own descriptions, one image at a time")
    for name in ("domain", "right %", "description"):
        table.add_column(name)
    for name, figures in found.items():
        table.add_row(name, f"{figures['accuracy']:.1f}", figures["description"])
    mean = sum(f["accuracy"] for f in found.values()) / len(found)
    table.add_row("mean", f"{mean:.1f}", "")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
