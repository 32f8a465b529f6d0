"""jobs/compare.py from its words to its files, in this process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from archipelago.actors import comparing
from archipelago.jobs import compare
from archipelago.pipeline.benchmark.cells import CELL
from archipelago.pipeline.errors import EXIT_DONE, EXIT_FAILURE, EXIT_USER
from tests.helpers import parquet_domain

pytestmark = pytest.mark.slow  # eight short runs

METHODS = "methods=[zero_shot,lora,gda_per_task,archipelago(group=off)]"


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stream")
    for task in ("apples", "boats"):
        parquet_domain(root, task, classes=3, train=8, test=4, size=32)
    return root


def _words(stream: Path, run: Path, *more: str) -> list[str]:
    alone = [f"cluster.{kind}.num_workers=0" for kind in ("train", "encode", "data")]
    small = ["training.steps=4", "training.batch_size=6", "training.views=1"]
    return [*alone, *small, "stream=parquet", f"stream.root={stream}", f"run_dir={run}", *more]


@pytest.fixture(scope="module")
def finished(stream: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that dies after its second run and is then continued by the same command."""
    run = tmp_path_factory.mktemp("runs") / "side"
    words = _words(stream, run, METHODS, "seeds=[0]", "orders=[alphabetical]")
    real, kept = comparing.learn_stream, []

    def dies(session: Any) -> None:
        if len(kept) == 2:
            raise OSError("the disk is gone")
        kept.append(session)
        real(session)

    comparing.learn_stream = dies
    try:
        assert compare.main(words) == EXIT_FAILURE
    finally:
        comparing.learn_stream = real
    assert json.loads((run / "compare.json").read_text())["status"] == "partial"
    before = {p: p.read_bytes() for p in run.rglob(CELL)}
    assert len(before) == 2
    assert compare.main(words) == EXIT_DONE
    assert all(path.read_bytes() == data for path, data in before.items()), "done once"
    return run


def test_rows_hold_what_the_contract_says(finished: Path) -> None:
    found = json.loads((finished / "compare.json").read_text())
    assert found["status"] == "complete" and found["versions"]["torch"]
    labels = ["zero_shot", "lora", "gda_per_task", "archipelago(group=off)"]
    assert [row["method"] for row in found["rows"]] == labels
    for row in found["rows"]:
        assert row["seed"] == 0 and row["order"] == "alphabetical"
        for name in ("mtil_given", "mtil_identified", "xtail", "xtail_merged"):
            assert set(row["settings"][name]) == {"transfer", "average", "last"}
        assert row["settings"]["cil"] is None
        assert {
            "forgetting",
            "identifier",
            "parameters",
            "bytes",
            "passes",
            "seconds",
            "peak_mib",
        } <= set(row)
    frozen, lora, gda, ours = found["rows"]
    assert frozen["parameters"] == frozen["image_gradients"] == 0 and frozen["passes"] == 1.0
    assert lora["passes"] == 2.0 and lora["image_gradients"] == 2 * 4 * 6
    assert gda["passes"] == ours["passes"] == 1.0 and ours["image_gradients"] == 0
    assert ours["parameters_identifier"] == ours["parameters"] > 0 == lora["parameters_identifier"]
    assert gda["settings"]["xtail"]["last"] > frozen["settings"]["xtail"]["last"]
    against = {item["against"] for item in found["intervals"]}
    assert against == {"archipelago(group=off)"}, "ours, where it takes part"


def test_its_files_lie_beside_and_images_are_decoded_once(finished: Path) -> None:
    for name in ("compare.md", "compare.html", "compare.parquet", "plots/compare-xtail.png"):
        assert (finished / name).stat().st_size
    assert (finished / "cache").is_dir()
    assert not list((finished / "worlds").rglob("cache"))


def test_other_settings_and_streams_are_refused_in_one_line(
    finished: Path, stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "compare.json").read_bytes()

    def said(run: Path, *more: str, root: Path = stream) -> str:
        assert compare.main(_words(root, run, *more)) == EXIT_USER
        out = "".join(capsys.readouterr())
        return " ".join(out.split())

    assert "training.steps=5: " in said(finished, METHODS, "training.steps=5")
    assert (finished / "compare.json").read_bytes() == before
    assert "unknown option of lora" in said(tmp_path / "a", "methods=[lora(rank=1)]")
    dense = compare.main(
        [
            "methods=[zero_shot]",
            "stream=scenes",
            f"run_dir={tmp_path / 'b'}",
            *(w for w in _words(stream, tmp_path) if w.startswith("cluster")),
        ]
    )
    assert dense == EXIT_USER and "is a dense task" in "".join(capsys.readouterr())
    one = tmp_path / "one"
    parquet_domain(one, "apples", classes=3, train=1, test=4, size=32)
    refused = said(tmp_path / "c", "methods=[zero_shot,lora]", root=one)
    assert "methods: lora cannot learn this stream: " in refused
    assert not list((tmp_path / "c").rglob(CELL)), "before any other has begun"


def test_rates_are_found_on_training_images_once_and_kept(
    stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "side"
    words = _words(stream, run, "methods=[zero_shot,lora]", "tune=on")
    assert compare.main(words) == EXIT_DONE
    tuned = json.loads((run / "tuned.json").read_text())["stream"]
    assert set(tuned) == {"lora"} and tuned["lora"]["domains"] == ["apples", "boats"]
    tried = {float(rate): right for rate, right in tuned["lora"]["tried"].items()}
    assert sorted(tried) == [0.00125, 0.0025, 0.005, 0.01, 0.02]
    assert tuned["lora"]["rate"] == max(
        tried, key=lambda rate: (tried[rate], -abs(math.log(rate / 0.005)))
    )
    learned = json.loads(next(run.rglob("references/lora/run.json")).read_text())
    assert learned["config"]["method"]["options"]["learning_rate"] == tuned["lora"]["rate"]
    assert not list(run.rglob("trial-*")), "trials are thrown away"
    before = (run / "tuned.json").stat().st_mtime_ns
    assert compare.main([*words, "seeds=[0,1]"]) == EXIT_DONE
    assert (run / "tuned.json").stat().st_mtime_ns == before
    capsys.readouterr()
    assert compare.main([*words[:-1]]) == EXIT_USER
    assert "tune=False: " in " ".join("".join(capsys.readouterr()).split())


def test_worlds_side_by_side_are_those_one_after_another(
    stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for run, at_once in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        asked = ["methods=[zero_shot,gda_per_task]", "seeds=[0,1]", f"at_once={at_once}"]
        assert compare.main(_words(stream, run, *asked)) == EXIT_DONE
        document = json.loads((run / "compare.json").read_text())
        assert document["status"] == "complete"
        found[at_once] = [(r["method"], r["seed"], r["settings"]) for r in document["rows"]]
    assert len(found[1]) == 4 and found[1] == found[2]
    capsys.readouterr()
    wrong = _words(stream, tmp_path / "three", "methods=[zero_shot]", "seeds=[0,1]", "at_once=2")
    assert compare.main([*wrong, "training.steps=zero"]) == EXIT_USER
    assert "training.steps" in "".join(capsys.readouterr())
