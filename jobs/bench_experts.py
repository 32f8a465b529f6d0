"""Compare ways to build expert groups: shared experts, their grain, TRGE with and without them.

    python jobs/bench_experts.py run_dir=DIR
    python jobs/bench_experts.py run_dir=DIR parts=shared,grain seeds=0,1 stream=parquet ...
    python jobs/bench_experts.py parts=cost

Parts: `shared` (joint training of all domains: none, naive, adaptive at equal active experts and
parameters), `grain` (coarse, medium, fine at equal parameters), `trge` (TRGE with and without
adaptive shared experts, one domain a stage), `cost` (time of a training step and of inference).
Everything else is a setting of the runs. A run that is done is read, not repeated.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from actors.session import Session
from jobs.sequence import learn_stream
from pipeline.config import load
from pipeline.errors import EXIT_DONE, EXIT_USER, UserError
from pipeline.evaluation.report import build_report
from pipeline.methods.base import StageContext, build_method
from pipeline.model.backbone import load_backbone
from pipeline.model.kernels import Kernels
from pipeline.settings import Settings
from pipeline.store import RunFolder

PARTS: dict[str, dict[str, list[str]]] = {
    "shared": {
        name: ["method=ase", "experts.preset=coarse", f"experts.shared={name}"]
        for name in ("none", "naive", "adaptive")
    },
    "grain": {
        name: ["method=ase", f"experts.preset={name}", "experts.shared=adaptive"]
        for name in ("coarse", "medium", "fine")
    },
    "trge": {
        "trge": ["method=trge", "experts.preset=coarse"],
        "trge_ase": ["method=trge_ase", "experts.preset=coarse"],
    },
}
COSTS = {
    "LoRA-MoE, softmax first": ["experts=ase", "experts.shared=none", "experts.normalise=pre"],
    **{
        f"adaptive, {grain}": ["experts=ase", f"experts.preset={grain}"] for grain in PARTS["grain"]
    },
}
IN_PROCESS = [f"cluster.{kind}.num_workers=0" for kind in ("train", "encode", "data")]
REPEATS, BATCH, CLASSES = 15, 64, 20


def main(arguments: Sequence[str]) -> int:
    """Print the tables; returns the exit code."""
    console = Console()
    given = dict(a.split("=", 1) for a in arguments if a.startswith(("parts=", "seeds=")))
    rest = [a for a in arguments if not a.startswith(("parts=", "seeds="))]
    parts = given.get("parts", ",".join([*PARTS, "cost"])).split(",")
    try:
        seeds = [int(seed) for seed in given.get("seeds", "0,1,2").split(",")]
        for part in parts:
            if part == "cost":
                console.print(cost_table(rest))
            elif part in PARTS:
                console.print(compare(part, seeds, rest))
            else:
                raise UserError(f"parts={part}: choose from {', '.join([*PARTS, 'cost'])}")
    except (UserError, ValueError) as error:
        Console(stderr=True, highlight=False).print(f"bench_experts: {error}", markup=False)
        return EXIT_USER
    return EXIT_DONE


def compare(part: str, seeds: Sequence[int], arguments: Sequence[str]) -> Table:
    """Run each variant of a part with each seed; mean and standard deviation over seeds."""
    table = Table(
        title=f"{part}: mean over tasks of the last accuracy, percent; {len(seeds)} seeds"
    )
    for name in ("variant", "given id", "identified", "transfer", "shared gate", "parameters"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for variant, overrides in PARTS[part].items():
        reports = [_run(variant, overrides, seed, arguments) for seed in seeds]
        gates = [_shared_gate(report) for report in reports]
        table.add_row(
            variant,
            _spread([report["last_oracle"] for report in reports]),
            _spread([report["last"] for report in reports]),
            _spread([report["transfer"] for report in reports]),
            _spread(gates, 2),
            f"{reports[0]['parameters']['per_group'][0]:,}",
        )
    return table


def _run(variant: str, overrides: list[str], seed: int, arguments: Sequence[str]) -> dict[str, Any]:
    settings = load([*IN_PROCESS, "tracking=off", *arguments, *overrides, f"seed={seed}"])
    if settings.run_dir is None:
        raise UserError("run_dir: say where the runs are kept, run_dir=DIR")
    root = Path(settings.run_dir).expanduser().absolute()
    name = "-".join(o.split("=")[1] for o in overrides)
    cache = settings.cluster.cache_dir or str(root / "cache")
    cluster = settings.cluster.model_copy(update={"cache_dir": cache})
    where = {"run_dir": str(root / f"{name}-{seed}"), "cluster": cluster}
    settings = settings.model_copy(update=where)
    run = RunFolder(str(root / f"{name}-{seed}"), read_only=True)
    report = build_report(run) if run.exists() else {"status": "none"}
    if report["status"] != "complete":
        with Session(settings) as session:
            learn_stream(session)
            report = build_report(session.run)
    return report


def _shared_gate(report: dict[str, Any]) -> float | None:
    gates = [
        gate for stage in report["experts"] if stage["shared"] for gate in stage["shared_gate"]
    ]
    return float(np.mean(gates)) if gates else None


def _spread(values: Sequence[float | None], digits: int = 1) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{np.mean(known):.{digits}f}{spread}"


def cost_table(arguments: Sequence[str]) -> Table:
    """Milliseconds of a training step and of inference, side by side, interleaved in time."""
    title = f"cost: {BATCH} images, {CLASSES} class names; medians of {REPEATS}, ms"
    table = Table(title=title)
    for name in ("group", "training step", "ratio", "images encoded", "ratio"):
        table.add_column(name, justify="left" if name == "group" else "right")
    given = [a for a in arguments if not a.startswith(("run_dir=", "stream"))]
    settings = {name: load([*given, "method=trge_ase", *words]) for name, words in COSTS.items()}
    timed = time_groups(settings)
    first = next(iter(timed.values()))
    for name, (step, encode) in timed.items():
        ratios = f"{step / first[0]:.2f}", f"{encode / first[1]:.2f}"
        table.add_row(name, f"{step * 1e3:.0f}", ratios[0], f"{encode * 1e3:.0f}", ratios[1])
    return table


def time_groups(settings: dict[str, Settings]) -> dict[str, tuple[float, float]]:
    """Median seconds of (training step, encoding of a batch) of a fresh group by name.

    The trunk is not timed: it is the same for all, and its activations are cached in training.
    """
    common = next(iter(settings.values()))
    backbone = load_backbone(common.backbone, "cpu", Kernels())
    generator = torch.Generator().manual_seed(0)
    image, text = backbone.image, backbone.text
    x_BLD = torch.randn(BATCH, image.tokens, image.width, generator=generator)
    names = [f"thing number {i}" for i in range(CLASSES)]
    tokens = backbone.tokenize([f"a photo of a {name}." for name in names])
    position = text.positions(tokens)
    x_CLD = torch.randn(*tokens.shape, text.width, generator=generator)
    adapters = {
        name: build_method(backbone, chosen).adapter(StageContext(0, "a"))
        for name, chosen in settings.items()
    }
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in adapters}
    for repeat in range(REPEATS + 2):
        for name, adapter in adapters.items():
            clock = time.perf_counter()
            adapter.zero_grad()
            loss = (adapter.image(x_BLD) @ adapter.text(x_CLD, position).T).square().sum()
            loss.backward()
            step = time.perf_counter() - clock
            clock = time.perf_counter()
            with torch.no_grad():
                adapter.image(x_BLD)
            encode = time.perf_counter() - clock
            if repeat >= 2:  # the first ones warm up
                seconds[name][0].append(step)
                seconds[name][1].append(encode)
    return {n: (float(np.median(s)), float(np.median(e))) for n, (s, e) in seconds.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
