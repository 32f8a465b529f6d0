"""One switch changed at a time, on a finished run: nothing is learned, figures are the run's."""

from __future__ import annotations

from pathlib import Path

import pytest

from archipelago.jobs import ablate
from archipelago.pipeline.evaluation.report import build_report
from archipelago.pipeline.store import RunFolder
from tests.unit.tiny_run import World
from tests.unit.tiny_serving import learned_run

METHOD = {"name": "archipelago", "options": {"group": "on", "learning_rate": 0.02}}


def stream_of(world: World) -> dict[str, str]:
    return {"reader": "parquet", "root": str(world.backbone.parent / "stream")}


@pytest.fixture(scope="module")
def run(served_world: World, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    where = tmp_path_factory.mktemp("ablation") / "run"
    return learned_run(served_world, where, method=METHOD, stream=stream_of(served_world))


def test_the_run_as_it_is_and_each_switch(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {ref.name: ref.sha256 for ref in run.current_groups()}
    assert ablate.main([f"run_dir={run.uri}"]) == 0
    rows = {row["variant"]: row for row in run.folder.read_json("ablation.json")["rows"]}
    assert {ref.name: ref.sha256 for ref in run.current_groups()} == before
    base, report = rows["as it is"], build_report(run)
    for setting in base["settings"]:
        figures = report["settings"][setting]
        for key in ("transfer", "average", "last"):
            assert base["settings"][setting][key] == pytest.approx(figures[key], abs=1e-3)
        assert base["settings"][setting]["last_gain"]["mean"] == 0.0
    known = [a for a in report["settings"]["xtail"]["seen_acceptance"] if a is not None]
    assert base["acceptance"] == pytest.approx(sum(known) / len(known), abs=1e-3)
    without = rows["heads without the group"]["settings"]["mtil_given"]
    gain = without["last"] - base["settings"]["mtil_given"]["last"]
    assert without["last_gain"]["mean"] == pytest.approx(gain, abs=1e-6)
    changed = [row for row in rows.values() if row["settings"] != base["settings"]]
    assert len(changed) >= 5, "a switch that changes nothing at all is no switch"
    assert {"joint = 0.5", "predicted = 0.3", "cca = 0.3"} <= rows.keys()
    out = capsys.readouterr().out
    printed = " ".join(out.split())
    assert "the likeliest task alone" in printed and "all classes of all domains" in printed
    assert max(len(line) for line in out.splitlines()) <= 80
    for title, row in rows.items():
        (line,) = (line for line in out.splitlines() if line.startswith(title))
        tail = row["settings"]["xtail"]
        shown = [f"{tail[gain]['mean']:+.1f}±" in line for gain in ("average_gain", "last_gain")]
        assert all(shown) and line.count("±") == 2, line


def test_only_switches_that_the_method_has(
    served_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate.main([f"run_dir={tmp_path / 'nowhere'}"]) == 2
    assert "this is not a run folder" in capsys.readouterr().err
    assert ablate.main(["run=x"]) == 2
    assert "run: unknown here; did you mean run_dir?" in capsys.readouterr().err
    closed = learned_run(
        served_world,
        tmp_path / "gda",
        method={"name": "gda_per_task"},
        stream=stream_of(served_world),
    )
    assert ablate.main([f"run_dir={closed.uri}"]) == 0
    printed = capsys.readouterr().out
    assert "evidence of tasks alone" in printed and "kappa" not in printed
