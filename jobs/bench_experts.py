"""Compare ways to build expert groups: shared experts, their grain, TRGE with and without them.

    python jobs/bench_experts.py
    python jobs/bench_experts.py parts=shared,grain seeds=0,1 stream=scenes training.steps=100
    python jobs/bench_experts.py parts=trge run_dir=DIR
    python jobs/bench_experts.py parts=cost

Parts: `shared` (none, naive, adaptive at equal parameters and equally many active experts) and
`grain` (coarse, medium, fine at equal parameters), both joint training of all tasks, judged on the
test split with the task given; `trge` (TRGE with and without adaptive shared experts, one domain a
stage, whole runs); `cost` (time of a training step and of inference). Everything else is a setting.
The frozen trunk runs once a seed for all variants. What lies in run_dir already is not repeated.
It computes in what suits the processor, unless `backbone.attention` and `backbone.precision` say
otherwise.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from archipelago.actors.learning import learn_stream
from archipelago.actors.resources import Resources
from archipelago.actors.session import Session
from archipelago.pipeline.config import load
from archipelago.pipeline.errors import EXIT_DONE, EXIT_USER, UserError
from archipelago.pipeline.evaluation.metrics import delta_m
from archipelago.pipeline.evaluation.report import build_report
from archipelago.pipeline.methods.base import Adapter, StageContext, build_method
from archipelago.pipeline.model.backbone import Backbone, load_backbone
from archipelago.pipeline.model.kernels import Kernels, choose
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder, sha256
from archipelago.pipeline.streams import (
    DenseTable,
    ImageTable,
    PreparedDomain,
    open_stream,
    prepare,
)
from archipelago.pipeline.training.data import attach_heads, load_data
from archipelago.pipeline.training.dense import DenseObjective
from archipelago.pipeline.training.loop import planned_steps, train
from archipelago.pipeline.training.objectives import Classification, Objective
from archipelago.pipeline.training.spec import StageSpec
from archipelago.pipeline.training.trunk import CHUNK

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
REPEATS, BATCH, CLASSES = 7, 16, 10


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
            elif part == "trge":
                console.print(compare_runs(seeds, rest))
            elif part in PARTS:
                console.print(compare_joint(part, seeds, rest))
            else:
                raise UserError(f"parts={part}: choose from {', '.join([*PARTS, 'cost'])}")
    except (UserError, ValueError) as error:
        Console(stderr=True, highlight=False).print(f"bench_experts: {error}", markup=False)
        return EXIT_USER
    return EXIT_DONE


def compare_joint(part: str, seeds: Sequence[int], arguments: Sequence[str]) -> Table:
    """Train all tasks jointly with each variant and seed; mean and standard deviation over seeds.

    `gain` is Delta_m over the first variant, seed by seed.
    """
    found = [_kept(part, seed, arguments) for seed in seeds]
    first = next(iter(PARTS[part]))
    tasks = list(found[0][first]["figures"])
    variants = list(PARTS[part])
    table = Table(title=f"{part}: joint training, test split, task given; {len(seeds)} seeds")
    table.add_column("task")
    for name in variants:
        table.add_column(name, justify="right")
    for task in tasks:
        unit = found[0][first]["figures"][task][1]
        values = [[seed[name]["figures"][task][0] for seed in found] for name in variants]
        table.add_row(f"{task} ({unit})", *(_spread(each) for each in values))
    table.add_section()
    gains = {
        name: [_gain(seed[name]["figures"], seed[first]["figures"]) for seed in found]
        for name in variants
    }
    table.add_row("gain, %", "-", *(_spread(gains[n], signed=True) for n in variants[1:]))
    curves = {name: [seed[name]["gate"] for seed in found] for name in variants}
    gates = [
        " to ".join(_spread([curve[i] for curve in each], 2) for i in (0, -1)) if all(each) else "-"
        for each in curves.values()
    ]
    table.add_row("shared gate", *gates)
    table.add_row("parameters", *(f"{found[0][name]['parameters']:,}" for name in variants))
    return table


def _kept(part: str, seed: int, arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `joint` finds; what it found before with these words in the same run_dir is read."""
    where = load(list(arguments)).run_dir
    if where is None:
        return joint(seed, PARTS[part], arguments)
    paths = {
        name: Path(where) / f"{sha256(json.dumps([words, *arguments]).encode())[:12]}-{seed}.json"
        for name, words in PARTS[part].items()
    }
    missing = {name: PARTS[part][name] for name, path in paths.items() if not path.exists()}
    Path(where).mkdir(parents=True, exist_ok=True)
    if missing:
        joint(seed, missing, arguments, lambda name, result: _write(paths[name], result))
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result))


def _gain(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    pairs = [(ours[task], theirs[task]) for task in ours]
    return delta_m([a[0] for a, _ in pairs], [b[0] for _, b in pairs], [a[2] for a, _ in pairs])


def joint(
    seed: int,
    variants: dict[str, list[str]],
    arguments: Sequence[str],
    done: Callable[[str, dict[str, Any]], None] = lambda name, result: None,
) -> dict[str, dict[str, Any]]:
    """Per variant: `figures` task -> (value, unit, lower is better), `gate`, `parameters`."""
    common = [*IN_PROCESS, "tracking=off", *arguments, f"seed={seed}"]
    settings = {name: load([*common, *words]) for name, words in variants.items()}
    one = next(iter(settings.values()))
    kernels = choose(one.backbone.attention, one.backbone.precision, "cpu")
    backbone = load_backbone(one.backbone, "cpu", kernels)
    with tempfile.TemporaryDirectory() as folder:
        domains = prepare(
            open_stream(one.stream, seed, dense=True),
            size=backbone.image_size,
            run=folder,
            cache_dir=one.cluster.cache_dir or f"{folder}/cache",
            cache_gib=one.cluster.cache_gib,
            cluster=one.cluster,
            max_pixels=one.stream.max_pixels,
            use_ray=False,
        )
        spec = StageSpec(one, folder, kernels, 0, tuple(domains))
        objectives = load_data(spec, build_method(one, None, backbone), 0, 1)
        heads = [copy.deepcopy(h.state_dict()) if (h := o.head()) else None for o in objectives]
        first = build_method(one, None, backbone).first_blocks[0]
        tests = {d.tables["test"]: _trunk(backbone, first, d.tables["test"]) for d in domains}
        found = {}
        for name, chosen in settings.items():
            for objective, state in zip(objectives, heads, strict=True):
                head = objective.head()
                if head is not None and state is not None:
                    head.load_state_dict(state, strict=True)
            found[name] = _train_jointly(chosen, backbone, spec, objectives, tests)
            done(name, found[name])
    return found


def _train_jointly(
    settings: Settings,
    backbone: Backbone,
    spec: StageSpec,
    objectives: Sequence[Objective],
    tests: dict[str, torch.Tensor],
) -> dict[str, Any]:
    method, domains = build_method(settings, None, backbone), spec.domains
    names = tuple(domain.name for domain in domains)
    sizes = tuple(len(domain.classes) for domain in domains)
    adapter = method.adapter(StageContext(0, spec.name, (), names, sizes))
    attach_heads(adapter, objectives)
    gate: list[float] = []

    def report(metrics: dict[str, Any], state: object) -> None:
        gate.extend([metrics["shared_gate"]] if "shared_gate" in metrics else [])

    steps = planned_steps(settings.training, *(objective.rows for objective in objectives))
    train(method, adapter, objectives, seeding=spec.seeding, steps=steps, report=report)
    figures = {
        domain.name: _figure(adapter, objective, number, domain, tests[domain.tables["test"]])
        for number, (domain, objective) in enumerate(zip(domains, objectives, strict=True))
    }
    parameters = sum(p.numel() for p in adapter.parameters())
    return {"figures": figures, "gate": gate, "parameters": parameters}


@torch.no_grad()
def _trunk(backbone: Backbone, first: int, path: str) -> torch.Tensor:
    """Activations (N, L, D) of a test split at the first adapted block."""
    table, tower, parts = ImageTable.open(path), backbone.image, []
    for start in range(0, len(table), CHUNK):
        pixels = table.images(np.arange(start, min(start + CHUNK, len(table))))
        with backbone.kernels.exact():
            parts.append(tower.run(tower.embed(backbone.normalise(pixels)), 0, first))
    return torch.cat(parts)


@torch.no_grad()
def _figure(
    adapter: Adapter, objective: Objective, number: int, domain: PreparedDomain, x: torch.Tensor
) -> tuple[float, str, bool]:
    """A task's own figure on its test split: value, unit, whether lower is better."""
    path = domain.tables["test"]
    if isinstance(objective, Classification):
        labels = torch.from_numpy(ImageTable.open(path).labels)
        there = dataclasses.replace(objective, held_x=x, held_y=labels)
        return 100.0 * there.judge(adapter, number).score, "%", False
    assert isinstance(objective, DenseObjective)
    table, metric, head = DenseTable.open(path), objective.task.metric(), objective.head()
    for rows in np.array_split(np.flatnonzero(table.usable(domain.name)), -(-len(table) // CHUNK)):
        output = head(adapter.maps(x[torch.from_numpy(rows)], number))
        metric.update(output, torch.from_numpy(table.targets(domain.name, rows)))
    score = next(iter(metric.values().values()))
    return score.value, score.unit, score.lower_is_better


def compare_runs(seeds: Sequence[int], arguments: Sequence[str]) -> Table:
    """Whole runs of TRGE with each kind of group; mean and standard deviation over seeds."""
    title = f"trge: mean over tasks of the last accuracy, percent; {len(seeds)} seeds"
    table = Table(title=title)
    for name in ("variant", "given id", "identified", "transfer", "parameters a group"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for variant, overrides in PARTS["trge"].items():
        reports = [_run(variant, overrides, seed, arguments) for seed in seeds]
        table.add_row(
            variant,
            *(_spread([r[key] for r in reports]) for key in ("last_oracle", "last", "transfer")),
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
        with Resources(settings) as resources, Session(resources) as session:
            learn_stream(session)
            report = build_report(session.run)
    return report


def _spread(values: Sequence[float | None], digits: int = 1, signed: bool = False) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    sign = "+" if signed else ""
    spread = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{np.mean(known):{sign}.{digits}f}{spread}"


def cost_table(arguments: Sequence[str]) -> Table:
    """Milliseconds of a training step and of inference, side by side, interleaved in time."""
    title = f"cost: {BATCH} images, {CLASSES} class names; medians of {REPEATS}, ms of one core"
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

    The trunk is not timed: it is the same for all, and its activations are cached in training. Time
    is that of the processor with one thread: what else runs on the machine changes it little.
    """
    torch.set_num_threads(1)
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
        name: build_method(chosen, None, backbone).adapter(StageContext(0, "a"))
        for name, chosen in settings.items()
    }
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in adapters}
    for repeat in range(REPEATS + 2):
        for name, adapter in adapters.items():
            clock = time.process_time()
            adapter.zero_grad()
            loss = (adapter.image(x_BLD) @ adapter.text(x_CLD, position).T).square().sum()
            loss.backward()
            step = time.process_time() - clock
            clock = time.process_time()
            with torch.no_grad():
                adapter.image(x_BLD)
            encode = time.process_time() - clock
            if repeat >= 2:  # the first ones warm up
                seconds[name][0].append(step)
                seconds[name][1].append(encode)
    return {n: (float(np.median(s)), float(np.median(e))) for n, (s, e) in seconds.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
