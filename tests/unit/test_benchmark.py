"""Methods side by side: what is asked for, what is said of it, and how sure that is."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from archipelago.pipeline.benchmark import document, page, summary, tuning
from archipelago.pipeline.benchmark.certainty import critical_difference, intervals, ranking
from archipelago.pipeline.benchmark.plan import (
    Plan,
    Rival,
    World,
    claim,
    ordered,
    read_plan,
    shared,
)
from archipelago.pipeline.benchmark.probe import BATCH, Probe, Speed, estimate
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.evaluation.records import Records
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import Folder
from archipelago.pipeline.streams import ImageTable
from tests.unit.tiny_clip import settings
from tests.unit.tiny_run import make_world, run_settings

# -- the plan ------------------------------------------------------------------------------------


def test_a_plan_is_read_from_words() -> None:
    plan, rest = read_plan(
        [
            "methods=[zero_shot,archipelago(group=off,kappa=0.5)]",
            "seeds=[0,2]",
            "orders=[alphabetical,reverse]",
            "stream=parquet",
            "training.steps=60",
        ]
    )
    assert rest == ["stream=parquet", "training.steps=60"]
    ours = plan.rivals[1]
    assert ours.words() == [
        "method=archipelago",
        "method.options.group=off",
        "method.options.kappa=0.5",
    ]
    assert ours.folder == "archipelago-group-off-kappa-0.5"
    assert [w.folder for w in plan.worlds()] == [
        "worlds/alphabetical-0",
        "worlds/reverse-0",
        "worlds/alphabetical-2",
        "worlds/reverse-2",
    ]
    again, _ = read_plan([*plan.words(), "at_once=3", "world=worlds/reverse-2"])
    assert again == replace(plan, at_once=3, only="worlds/reverse-2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["methods=[zero_shot,ligth]"], "method.name=ligth: unknown"),
        (["methods=[zero_shot]", "world=worlds/odd-0"], "world=worlds/odd-0: is none"),
        (["methods=[zero_shot]", "at_once=0"], "at_once=0: give a number of worlds"),
        (["methods=zero_shot"], r"methods=zero_shot: expected a list: methods=\[a,b\]"),
        (["methods=[a b]"], "methods: 'a b' is no method"),
        (["methods=[zero_shot,zero_shot]"], "methods: 'zero_shot' is listed twice"),
        (["seeds=[0]"], "methods: name those to compare"),
        (["methods=[zero_shot]", "seeds=[x]"], "seeds: 'x' is no whole number"),
        (["methods=[zero_shot]", "orders=[up]"], "orders: 'up' is none of alphabetical"),
        (["methods=[zero_shot]", "method=trge"], r"method=trge: .* methods=\[...\]"),
        (["methods=[zero_shot]", "seed=1"], r"seed=1: .* seeds=\[...\]"),
    ],
)
def test_a_mistake_in_the_plan_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        read_plan(words)
    assert "\n" not in str(caught.value)


def test_orders_are_permutations_fixed_by_the_seed() -> None:
    names = ["c", "a", "d", "b"]
    assert ordered(names, "given", 0) == names and ordered(names, "alphabetical", 3) == list("abcd")
    assert ordered(names, "reverse", 0) == list("dcba")
    drawn = {seed: ordered(names, "seeded", seed) for seed in range(5)}
    assert all(sorted(order) == list("abcd") for order in drawn.values())
    assert drawn[0] == ordered(names[::-1], "seeded", 0), "whatever order they were found in"
    assert len({tuple(order) for order in drawn.values()}) > 1


def test_who_learns_everything_at_once_knows_no_order() -> None:
    plan = Plan(
        (Rival("joint", "joint"), Rival("lora", "lora")), orders=("alphabetical", "reverse")
    )
    labels = [[r.label for r in plan.rivals_in(world)] for world in plan.worlds()]
    assert labels == [["joint", "lora"], ["lora"]]


def test_a_folder_belongs_to_one_comparison(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    one = shared({"training": {"steps": 60, "views": 2}, "seed": 0, "stream": {"order": None}})
    assert one == {"training.steps": 60, "training.views": 2}
    claim(folder, {"": one})
    claim(folder, {"": one, "atlas": one})
    before = folder.read("comparison.json")
    with pytest.raises(UserError, match=r"^training\.steps=100: .*training\.steps=60; keep that"):
        claim(folder, {"": one | {"training.steps": 100}})
    assert folder.read("comparison.json") == before, "nothing is lost"
    folder.write_json("run.json", {})
    with pytest.raises(UserError, match="holds a run; a comparison wants a folder of its own"):
        claim(folder, {"": one})


# -- how sure ------------------------------------------------------------------------------------


def _records(right: dict[str, list[list[int]]], tasks: list[str]) -> Records:
    """Correctness of test images: task -> stages -> images, in the setting `xtail`."""
    stages = len(next(iter(right.values())))
    correct = {
        stage: {f"xtail/{task}": np.array(rows[stage], np.uint8) for task, rows in right.items()}
        for stage in range(stages)
    }
    return Records({}, tasks, {}, correct, {}, {}, [], [])


def test_orders_of_one_stream_share_their_images() -> None:
    ours = _records({"a": [[1, 1, 1, 1]], "b": [[1, 1, 0, 0]]}, ["a", "b"])
    again = _records({"b": [[1, 1, 0, 0]], "a": [[1, 1, 1, 1]]}, ["b", "a"])
    theirs = _records({"a": [[1, 0, 1, 0]], "b": [[1, 1, 0, 0]]}, ["a", "b"])
    runs = {
        "ours": [("s", 0, ours), ("s", 0, again)],
        "theirs": [("s", 0, theirs), ("s", 0, theirs)],
    }
    found = {(i["setting"], i["figure"]): i for i in intervals(runs, "ours", 500)}
    assert set(found) == {("xtail", "average"), ("xtail", "last")}
    last = found["xtail", "last"]
    assert last["method"] == "theirs" and last["against"] == "ours"
    assert last["mean"] == -25.0 and last["low"] < -25.0 < last["high"] <= 0.0


def test_average_is_over_stages_and_last_is_the_last() -> None:
    ours = _records({"a": [[1, 1], [1, 1]]}, ["a"])
    theirs = _records({"a": [[0, 0], [1, 1]]}, ["a"])
    found = {
        i["figure"]: i["mean"]
        for i in intervals({"x": [("", 0, ours)], "y": [("", 0, theirs)]}, "x", 100)
    }
    assert found == {"average": -50.0, "last": 0.0}


def test_critical_difference_against_a_published_table() -> None:
    """Demsar 2006: four classifiers on fourteen sets, q = 2.569, CD = 1.25."""
    scores = np.random.default_rng(0).random((14, 4))
    ranks, difference = critical_difference(scores)
    assert ranks.sum() == pytest.approx(10.0) and difference == pytest.approx(1.25, abs=0.01)
    best, _ = critical_difference(np.array([[3.0, 2.0, 2.0], [5.0, 1.0, 4.0]]))
    assert best.tolist() == [1.0, 2.75, 2.25]
    with pytest.raises(ValueError, match="two streams"):
        critical_difference(scores[:1])


# -- what is shown -------------------------------------------------------------------------------


def _row(method: str, last: float | None, stream: str = "s", order: str = "alphabetical") -> Any:
    figures = None if last is None else {"transfer": None, "average": 40.0, "last": last}
    names = ("mtil_given", "mtil_identified", "xtail", "xtail_merged", "cil")
    return {
        "method": method,
        "stream": stream,
        "seed": 0,
        "order": order,
        "settings": {n: figures if n in ("mtil_given", "xtail") else None for n in names},
        **dict.fromkeys(summary.COSTS, 7),
        "seconds_total": 9.0,
        "parameters_identifier": 0,
        "unseen_auroc": None,
    }


def _document(rows: list[Any], **facts: Any) -> dict[str, Any]:
    found = {"caption": "2 of 2 runs.", "rows": rows, "intervals": [], "ranking": ranking(rows)}
    return found | facts


def test_tables_hold_means_over_worlds_the_best_first() -> None:
    rows = [_row("a", 50.0), _row("b", 60.0), _row("a", 54.0, order="reverse"), _row("c", None)]
    found = summary.lines(rows, "xtail")
    assert [line["method"] for line in found] == ["b", "a"], "c has no answer in this setting"
    assert found[1]["last"] == 52.0 and found[1]["worlds"] == 2
    assert found[1]["last_std"] == pytest.approx(8.0**0.5) and found[0]["last_std"] is None
    text = summary.markdown(_document(rows))
    assert "| `a` | 2 | - | 40.0 ± 0.0 | 52.0 ± 2.8 |" in text
    assert "equal names" not in text and "| `c` | 7.0 |" in text
    table = pq.read_table(io.BytesIO(summary.parquet(rows)))
    assert table.num_rows == 6 and set(table["setting"].to_pylist()) == {"mtil_given", "xtail"}
    assert len(summary.tables(_document(rows))) == 2


def test_the_page_is_one_file_and_escapes_what_it_shows() -> None:
    rows = [_row("<a>", 50.0, s) for s in "st"] + [_row("b", 60.0, s) for s in "st"]
    item = {
        "method": "b",
        "against": "<a>",
        "setting": "xtail",
        "figure": "last",
        "mean": 10.0,
        "low": 8.0,
        "high": 12.0,
    }
    text = page.render(_document(rows, intervals=[item]))
    assert "&lt;a&gt;" in text and "<a>" not in text and "+10.0" in text
    assert "src=" not in text and "href=" not in text and "http" not in text
    assert "Mean ranks over 2 streams" in text
    assert set(page.plots(_document(rows))) == {"mtil_given", "xtail"}


def test_a_document_says_how_far_it_is(tmp_path: Path) -> None:
    plan = Plan((Rival("a", "lora"), Rival("archipelago", "archipelago")))
    rows = [_row("a", 50.0) | {"image_gradients": 480}]
    runs = {"a": [("", 0, _records({"t": [[1, 0]]}, ["t"]))]}
    found = document.build(plan, rows, runs, samples=10, versions={}, estimated_s=None)
    assert found["status"] == "partial" and "480 image gradients each" in found["caption"]
    assert document.reference_of(plan, ["a", "archipelago"]) == "archipelago"
    document.write(Folder(tmp_path), found)
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"compare.json", "compare.md", "compare.html", "compare.parquet"} <= names
    assert "compare-xtail.png" in names


# -- what it costs -------------------------------------------------------------------------------


def test_an_estimate_adds_up_passes_and_steps() -> None:
    training = {"steps": 5, "max_epochs": 0, "batch_size": 4, "views": 2}

    def seconds(name: str, step: float) -> float:
        chosen = settings(method={"name": name}, training=training)
        return estimate(chosen, Speed(0.01, step, 0.5), [100, 100], 20)

    assert seconds("zero_shot", 0.0) == 0.0
    assert seconds("ridge_per_task", 0.0) == pytest.approx(2.0), "one pass over what is learned"
    # + two views up to the trunk's end, ten steps, and what is above the trunk for test images.
    assert seconds("trge", 0.3) == pytest.approx(2.0 + 2.0 + 3.0 + 0.1)
    assert seconds("lora", 0.3) == pytest.approx(2.0 + 2.0 + 3.0 + 0.2), "each stage anew"


PEAK = """
import numpy as np
from archipelago.pipeline.benchmark.memory import PeakMemory

with PeakMemory(0.01) as during:
    block = np.ones(64 * 2**17)  # 64 MiB
    during._sample()
print(during.before, during.mib)
"""


def test_peak_memory_is_that_of_the_block() -> None:
    """In a process of its own: here, what earlier tests started may end while it looks."""
    found = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, peak = found.stdout.split()
    if before == "None":
        pytest.skip("this system does not say how much memory a process has")
    assert 60 < float(peak) - float(before) < 100


def test_worlds_of_several_streams_lie_apart() -> None:
    folders = {World(s, 0, "reverse").folder for s in ("", "atlas", "/data/a b", "/data/c")}
    assert folders == {
        "worlds/reverse-0",
        "worlds/atlas/reverse-0",
        "worlds/data-a-b/reverse-0",
        "worlds/data-c/reverse-0",
    }


def test_a_probe_times_what_a_method_does(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("a",))
    base = run_settings(world, method={"name": "zero_shot"})
    images = ImageTable.open(world.domains[0].tables["train"]).images(np.arange(BATCH))
    probe = Probe(base, Kernels(), world.domains[0], images)
    found = {
        name: probe.speed(run_settings(world, method={"name": name}))
        for name in ("ridge_per_task", "trge", "finetune_per_task")
    }
    assert probe.image > 0 and {speed.image for speed in found.values()} == {probe.image}
    assert (
        found["ridge_per_task"].step
        == 0.0
        < min(found[name].step for name in ("trge", "finetune_per_task"))
    )
    assert (found["trge"].share, found["finetune_per_task"].share) == (0.5, 1.0)


def test_a_rate_that_diverges_is_not_taken_and_a_killed_search_goes_on(tmp_path: Path) -> None:
    right = {0.00125: 80.0, 0.0025: 70.0, 0.005: None, 0.01: 75.0, 0.02: None}
    asked: list[float] = []

    def trial(changed: Settings) -> float:
        rate = tuning.rate_of(changed)
        asked.append(rate)
        assert changed.training.steps == tuning.STEPS
        if len(asked) == 3:
            raise KeyboardInterrupt
        found = right[round(rate, 6)]
        if found is None:
            raise UserError("training diverged at step 2")
        return found

    chosen = settings(method={"name": "lora"}, training={"steps": 500})
    tuner, domains = tuning.Tuner(Folder(str(tmp_path)), trial), ["apples", "boats"]
    with pytest.raises(KeyboardInterrupt):
        tuner.rate("stream", "lora", chosen, domains)
    assert tuner.rate("stream", "lora", chosen, domains) == 0.00125
    assert asked == [0.00125, 0.0025, 0.005, 0.005, 0.01, 0.02]
    assert tuner.rate("stream", "lora", chosen, domains) == 0.00125 and len(asked) == 6
    right.update(dict.fromkeys(right, 50.0))
    assert tuner.rate("equal", "lora", chosen, domains) == 0.005, "of equals the configured one"
    right.update(dict.fromkeys(right))
    with pytest.raises(UserError, match=r"tune=on: lora diverges at every learning rate"):
        tuner.rate("another", "lora", chosen, domains)


def test_the_time_that_trials_take_is_foretold() -> None:
    chosen = settings(method={"name": "lora"}, training={"steps": 500})
    short = tuning.tuning_s(chosen, Speed(0.01, 0.1, 0.5), [40, 40, 1000])
    assert short == tuning.tuning_s(chosen, Speed(0.01, 0.1, 0.5), [40, 40])
    steps = len(tuning.FACTORS) * tuning.DOMAINS * tuning.STEPS * 0.1
    assert 0.1 * steps < short < steps + 100.0


def test_what_trains_nothing_has_no_rate() -> None:
    for name, options, expected in (
        ("archipelago", {"group": "off"}, False), ("archipelago", {}, True),
        ("ridge_per_task", {}, False), ("trge", {}, True),
    ):  # fmt: skip
        assert tuning.trains(settings(method={"name": name, "options": options})) == expected
    chosen = settings(method={"name": "trge"}, training={"steps": 500})
    assert tuning.with_rate(chosen, 0.1).training.steps == tuning.STEPS
    assert tuning.with_rate(chosen, 0.1, None).training.steps == 500
    assert tuning.rate_of(tuning.with_rate(chosen, 0.1)) == 0.1
