"""report.json says what the run folder holds, for whole, partial and odd runs alike."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from archipelago.pipeline.evaluation import cost
from archipelago.pipeline.evaluation import report as reporting
from archipelago.pipeline.evaluation.console import summary
from archipelago.pipeline.evaluation.protocol import SETTINGS
from archipelago.pipeline.records import GroupRecord
from archipelago.pipeline.store import RunFolder
from tests.unit import synthetic_run
from tests.unit.synthetic_run import IMAGES, LEARNED, TASKS, ZERO_SHOT, write_run


def _exact(percent: float, images: int) -> float:
    return 100.0 * round(percent / 100 * images) / images


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("finished") / "run"
    run = write_run(path)
    write_run(path / "references/finetune", method="finetune", identifier=None)
    write_run(path / "references/lora_per_task", method="lora_per_task", identifier="oracle")
    return run


def test_complete_run(finished: RunFolder) -> None:
    report = reporting.write_report(finished, pictures=False)
    assert report == finished.folder.read_json("report.json")
    jsonschema.validate(report, reporting.schema())
    assert (report["status"], report["setting"]) == ("complete", "task identified")
    assert report["tasks"] == list(TASKS) and report["images"] == list(IMAGES)
    matrix = np.array(report["matrix"])
    expected = [
        [_exact(synthetic_run.percent(i, j), n) for j, n in enumerate(IMAGES)] for i in range(4)
    ]
    np.testing.assert_allclose(matrix, expected, atol=1e-4)
    assert report["last"] == pytest.approx(matrix[-1].mean(), abs=1e-3)
    assert report["transfer"] == pytest.approx(
        np.mean([matrix[:j, j].mean() for j in range(1, 4)]), abs=1e-3
    )
    assert report["columns"]["transfer"][0] is None
    assert report["upper_bound"] == [
        pytest.approx(_exact(p, n), abs=1e-3) for p, n in zip(LEARNED, IMAGES, strict=True)
    ]
    assert report["finetune"] == pytest.approx(report["references"]["finetune"]["matrix"][-1])
    assert report["forgetting"] > 0 > report["bwt"]
    assert report["last_oracle"] > report["last"]


def test_every_setting_has_its_figures(finished: RunFolder) -> None:
    report = reporting.build_report(finished)
    settings = report["settings"]
    assert set(settings) == {*SETTINGS, "cil"} and settings["cil"] is None
    assert settings["mtil_given"]["matrix"] == report["matrix_oracle"]
    assert settings["mtil_identified"]["matrix"] == report["matrix"]
    for name in SETTINGS:
        found, harder = settings[name], synthetic_run.HARDER[name]
        frozen = [_exact(p - harder, n) for p, n in zip(ZERO_SHOT, IMAGES, strict=True)]
        assert found["zero_shot"] == pytest.approx(frozen, abs=1e-3)
        debiased = [_exact(p - harder + 1, n) for p, n in zip(ZERO_SHOT, IMAGES, strict=True)]
        assert found["zero_shot_debiased"] == pytest.approx(debiased, abs=1e-3)
        matrix = np.array(found["matrix"])
        assert found["last"] == pytest.approx(matrix[-1].mean(), abs=1e-3)
        assert found["average"] == pytest.approx(matrix.mean(), abs=1e-3)
        for key, low, high in (
            ("last", *found["intervals"]["last"]),
            ("average", *found["intervals"]["average"]),
        ):
            assert low < found[key] < high and high - low < 15
        assert found["seen_acceptance"] == [98.0, 97.0, 96.0, None]
    assert settings["xtail"]["last"] < settings["xtail_merged"]["last"] < report["last"]


def test_a_stage_that_was_refined_counts_once(tmp_path: Path) -> None:
    """The closed form's folder stays beside that of the group: only the newest is the stage's."""
    run = write_run(tmp_path / "run")
    before = reporting.build_report(run)
    old = GroupRecord.read(run, run.groups.list()[1])
    (task,) = old.tasks
    facts = {"group": {"kept": True, "gain": [0.2, 0.05], "fold": {"head": 70.0, "both": 75.0}}}
    new = dataclasses.replace(
        old, tasks=(dataclasses.replace(task, facts=facts),), parameters=99_000
    ).write(run.groups, beside=True)
    assert new.ref is not None and len(run.groups.list()) == 5
    assert reporting.build_report(run)["parameters"] == before["parameters"], "nobody said so yet"
    run.journal.append("refined", stage=1, task="dtd", sha256=new.ref.sha256, seconds={"fit": 3.0})
    report = reporting.write_report(run, pictures=False)
    assert [g["sha256"] == new.ref.sha256 for g in report["groups"]] == [False, True, False, False]
    assert report["parameters"]["per_group"] == [70_000, 99_000, 70_020, 70_030]
    assert report["parameters"]["identifier"] == before["parameters"]["identifier"]
    of_task = report["per_task"]["dtd"]
    assert of_task["group_kept"] is True and of_task["gain"] == [0.2, 0.05]
    assert of_task["seconds"] == {"features": 0.5, "head": 0.25, "group": 3.0}
    assert report["per_task"]["aid"]["group_kept"] is None
    assert list(run.completed_stages()) == [0, 1, 2, 3]


def test_intervals_hold_the_difference_they_are_about(finished: RunFolder) -> None:
    report = reporting.build_report(finished)
    gap = report["intervals"]["transfer_minus_zero_shot"]
    zero_shot = np.mean(report["zero_shot"][1:])
    assert gap["mean"] == pytest.approx(report["transfer"] - zero_shot, abs=1e-3)
    assert gap["low"] < gap["mean"] < gap["high"] <= 0
    behind = report["intervals"]["last_minus_oracle"]
    assert behind["mean"] == pytest.approx(report["last"] - report["last_oracle"], abs=1e-3)
    assert behind["low"] < behind["mean"] < behind["high"] <= 0


def test_identifier_parameters_bytes_and_lineage(finished: RunFolder) -> None:
    report = reporting.build_report(finished)
    assert report["identifier"]["options"] == [*TASKS, "none"]
    assert report["identifier"]["seen_acceptance"] == [98.0, 97.0, 96.0, None]
    assert report["identifier"]["calibration_error"] == [2.5] * 4
    assert report["identifier"]["unseen_auroc"] == [97.5, 97.5, 97.5, None]
    assert [sum(row) for row in report["identifier"]["confusion"]] == list(IMAGES)
    parameters = report["parameters"]
    assert parameters["per_group"] == [70_000, 70_010, 70_020, 70_030]
    refs = finished.groups.list()
    kept = sum(GroupRecord.read(finished, ref).tasks[0].numbers for ref in refs)
    assert parameters["identifier"] == kept > 0 and parameters["backbone"] == 8_000_000
    assert parameters["total"] == sum(parameters["per_group"]) + kept
    sizes = [len(finished.groups.read(ref, "group.safetensors")) for ref in refs]
    assert report["bytes"]["per_group"] == sizes
    assert [group["sha256"] for group in report["groups"]] == [ref.sha256 for ref in refs]
    assert report["groups"][2]["parent"] == refs[1].sha256
    assert report["groups"][2]["neighbours"][0]["task"] == "dtd"
    seconds = report["seconds"]
    assert seconds["train"] == pytest.approx(0.004) and seconds["evaluate"] == pytest.approx(0.008)


def test_overhead_is_what_is_left_of_the_sessions(finished: RunFolder) -> None:
    def event(name: str, minute: int, **payload: object) -> dict:
        return {"event": name, "time": f"2026-01-01T00:{minute:02d}:00+00:00", **payload}

    records = reporting.read_records(finished)
    assert records is not None
    events = [
        event("run-started", 0),
        event("prepared", 1, seconds=30.0),
        event("stage-trained", 2, seconds=50.0),
        event("run-started", 40),  # killed at minute 2, started again
        event("stage-trained", 41, seconds=40.0),
        event("run-done", 43),
        event("run-started", 50),  # found everything done
        event("prepared", 51, seconds=1.0),
        event("run-done", 52),
    ]
    seconds = cost.seconds(dataclasses.replace(records, events=events))
    assert seconds["total"] == 5 * 60 and seconds["train"] == 90 and seconds["prepare"] == 30
    assert seconds["overhead"] == pytest.approx(300 - 90 - 30 - 0.008)
    beside = [event("run-started", 41), event("stage-trained", 42, seconds=9.0)]
    other = dataclasses.replace(records, events=beside)
    shared = cost.seconds(dataclasses.replace(records, events=events), [other])
    assert shared["references"] == 60 and seconds["references"] == 0
    assert shared["overhead"] == pytest.approx(seconds["overhead"] - 60)


def test_images_that_were_looked_at_long_before_they_are_trained_on_count_then(
    finished: RunFolder,
) -> None:
    def at(minute: int) -> str:
        return f"2026-01-01T00:{minute:02d}:00+00:00"

    records = reporting.read_records(finished)
    assert records is not None
    parts = {"look": 120.0, "trunk": 0.0, "steps": 60.0}
    events = [
        {"event": "run-started", "time": at(0)},
        {
            "event": "stage-trained",
            "time": at(9),
            "until": at(9),
            "looked": at(3),
            "seconds": parts,
        },
        {"event": "run-done", "time": at(10)},
    ]
    seconds = cost.seconds(dataclasses.replace(records, events=events))
    assert seconds["overhead"] == pytest.approx(600 - 180 - 0.008)


def test_partial_run_is_null_where_nothing_was_measured(tmp_path: Path) -> None:
    report = reporting.write_report(write_run(tmp_path / "run", stages=2), pictures=False)
    assert report["status"] == "partial"
    assert report["matrix"][2] == report["matrix_oracle"][3] == [None] * 4
    assert report["last"] == pytest.approx(np.mean(report["matrix"][1]), abs=1e-3)
    assert report["finetune"] is None and report["upper_bound"] is None
    assert report["identifier"]["seen_acceptance"] == [98.0, 97.0, None, None]
    assert report["settings"]["xtail"]["matrix"][3] == [None] * 4
    assert len(report["groups"]) == 2
    first = reporting.build_report(write_run(tmp_path / "first", stages=1))
    assert first["forgetting"] is None and first["bwt"] is None and first["transfer"] is not None


def test_nothing_measured_yet_still_reports(tmp_path: Path) -> None:
    report = reporting.write_report(write_run(tmp_path / "run", stages=0))
    assert report["status"] == "partial" and report["last"] is None
    assert report["identifier"] is None and report["intervals"]["last_minus_oracle"] is None
    with pytest.raises(FileNotFoundError, match="nothing to report"):
        reporting.build_report(RunFolder(str(tmp_path / "empty")))


def test_run_without_identifier_and_with_given_ids(tmp_path: Path) -> None:
    alone = write_run(tmp_path / "a", method="finetune", identifier=None)
    report = reporting.write_report(alone)
    assert report["identifier"] is None and report["setting"] == "one model for all tasks"
    given = reporting.build_report(write_run(tmp_path / "b", identifier="oracle"))
    assert given["setting"] == "task given"
    bound = write_run(tmp_path / "c", method="lora_per_task", identifier=None)
    report = reporting.build_report(bound)
    assert report["setting"] == "task given"
    assert report["matrix"] == report["matrix_oracle"] == report["settings"]["mtil_given"]["matrix"]
    assert report["settings"]["mtil_identified"] is report["settings"]["xtail"] is None


def test_appended_task_leaves_old_cells_null(tmp_path: Path) -> None:
    write_run(tmp_path / "run", tasks=TASKS[:3], stages=3)
    run = write_run(tmp_path / "run", tasks=TASKS, stages=4)
    report = reporting.write_report(run, pictures=False)
    assert report["status"] == "complete"
    assert [row[3] is None for row in report["matrix"]] == [True, True, True, False]
    assert report["columns"]["transfer"][3] is None
    assert report["transfer"] == pytest.approx(
        np.mean(report["columns"]["transfer"][1:3]), abs=1e-3
    )
    assert report["intervals"]["transfer_minus_zero_shot"]["mean"] == pytest.approx(
        report["transfer"] - np.mean(report["zero_shot"][1:3]), abs=1e-3
    )


def test_reference_that_lacks_a_task_is_not_compared(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_run(tmp_path / "run/references/finetune", tasks=TASKS[:3], stages=3, identifier=None)
    report = reporting.build_report(run)
    assert report["finetune"] is None and report["references"]["finetune"]["last"] is not None


def test_tables_hold_every_measurement(finished: RunFolder) -> None:
    report = reporting.write_report(finished, pictures=False)
    matrix = pq.read_table(io.BytesIO(finished.folder.read("matrix.parquet"))).to_pylist()
    assert len(matrix) == 4 + len(SETTINGS) * 16
    assert {row["setting"] for row in matrix} == {*SETTINGS, "zero_shot"}
    cells = {(row["setting"], row["stage"], row["task"]): row["accuracy"] for row in matrix}
    assert cells["mtil_identified", 2, "mnist"] == report["matrix"][2][3]
    assert cells["xtail", 2, "mnist"] == report["settings"]["xtail"]["matrix"][2][3]
    assert cells["zero_shot", -1, "aid"] == report["zero_shot"][0]
    confusion = pq.read_table(io.BytesIO(finished.folder.read("confusion.parquet"))).to_pylist()
    last = [r for r in confusion if r["stage"] == 3 and not r["closed"] and r["task"] == "dtd"]
    assert sum(row["images"] for row in last) == IMAGES[1]
    assert {row["option"] for row in last} == {*TASKS, "none"}


def test_report_is_the_same_twice(finished: RunFolder) -> None:
    reporting.write_report(finished, pictures=False)
    first = finished.folder.read("report.json")
    reporting.write_report(finished, pictures=False)
    assert finished.folder.read("report.json") == first


def test_schema_refuses_a_wrong_report(finished: RunFolder) -> None:
    report = json.loads(json.dumps(reporting.build_report(finished)))
    for key, value in (("status", "done"), ("matrix", [[101.0]]), ("seconds", {})):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**report, key: value}, reporting.schema())
    report.pop("upper_bound")
    with pytest.raises(jsonschema.ValidationError, match="upper_bound"):
        jsonschema.validate(report, reporting.schema())


def test_summary_shows_matrix_and_references(finished: RunFolder) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(reporting.build_report(finished)))
    text = " ".join(console.export_text().split())
    for expected in (
        "zero-shot",
        "finetune",
        "lora_per_task",
        "3 mnist",
        "Transfer/Average/Last",
        "percent right, all classes of all domains",
        " domain recognised ",
    ):
        assert expected in text
    last = reporting.build_report(finished)["settings"]["xtail"]["matrix"][3]
    assert f"{last[2]:.1f}" in text, "the hardest setting is shown"
    assert "seen-acceptance 96.0" in text


def _page(run: RunFolder) -> str:
    return run.folder.read("report.html").decode()


def test_page_and_pictures(finished: RunFolder) -> None:
    report = reporting.write_report(finished)
    page = _page(finished)
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page)  # self-contained
    assert page.count("<svg") == len(TASKS)
    for text in (
        f"{report['last']:.1f}",
        "seen-acceptance",
        "fine-tuning",
        "given id",
        "ray 2.60.0",
    ):
        assert text in page
    for group in report["groups"]:
        assert group["sha256"][:8] in page and group["digests"]["train"][:8] in page
    assert f">{report['matrix'][3][1]:.1f}</td>" in page
    pictures = finished.folder.list("plots/")
    assert pictures == [f"plots/{n}.png" for n in ("confusion", "matrix", "parameters", "tasks")]
    assert all(finished.folder.read(name).startswith(b"\x89PNG") for name in pictures)


def test_page_of_odd_runs(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", tasks=TASKS[:1], stages=1)
    reporting.write_report(one)
    assert "<h1>trge on parquet" in _page(one)
    strange = write_run(tmp_path / "strange", tasks=("<b>&", "dtd"), stages=1)
    reporting.write_report(strange)
    assert "<b>&" not in _page(strange) and "&lt;b&gt;&amp;" in _page(strange)
    assert "partial" in _page(strange)


def test_nothing_is_drawn_after_a_stage_in_between(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=1)
    reporting.write_report(run, pictures=False)
    assert run.folder.exists("report.json") and not run.folder.exists("report.html")
