"""The command `archipelago`, its help, its verbs over a run, and the Python face."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import archipelago
from archipelago import cli
from archipelago.actors.words import as_words
from archipelago.pipeline import handbook
from archipelago.pipeline.config import flatten, load
from archipelago.pipeline.errors import UserError
from tests.helpers import parquet_domain

ROOT = Path(__file__).resolve().parents[2]
COMMAND = str(Path(sys.executable).parent / "archipelago")
TASKS = ("apples", "boats")
HEAVY = {"torch", "ray", "mlflow", "transformers", "hydra"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream of three domains, and a finished run of the first two."""
    root = tmp_path_factory.mktemp("command")
    for task in (*TASKS, "cats"):
        parquet_domain(root / "stream", task, classes=3, train=8, test=4, size=32)
    archipelago.learn(root / "run", **settings(root))
    return root


def settings(root: Path, order: tuple[str, ...] = TASKS) -> dict[str, object]:
    return {
        "stream": "parquet",
        "stream.root": str(root / "stream"),
        "stream.order": list(order),
        "method": "gda_per_task",
        "tracking": "off",
        "cluster.train.num_workers": 0,
        "cluster.encode.num_workers": 0,
        "cluster.data.num_workers": 0,
    }


def words(root: Path, *more: str) -> list[str]:
    return [*as_words(settings(root)), *more]


def fresh(place: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    shutil.copytree(place / "run", tmp_path / "run")
    return tmp_path / "run"


# -- help ----------------------------------------------------------------------------------------


def test_help_comes_without_what_work_needs() -> None:
    script = (
        "import sys, archipelago.cli as c; c.run(sys.argv[1:]);"
        f"print(sorted(set(sys.modules) & {HEAVY}), file=sys.stderr)"
    )
    for arguments in (["--help"], ["learn", "--help"], ["predict", "-h"], ["serve", "--help"]):
        if arguments[0] not in {"--help", *cli.VERBS}:
            continue
        found = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
        )
        assert found.stderr.strip() == "[]", arguments
        assert len(found.stdout) > 200


def test_every_verb_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    listed = capsys.readouterr().out
    for verb, job in cli.VERBS.items():
        assert f"  {verb} " in listed
        docstring = ast.get_docstring(ast.parse((ROOT / "jobs" / f"{job}.py").read_text()))
        assert docstring and f"python jobs/{job}.py" in docstring, "an example"
        assert cli.run([verb, "--help"]) == 0
        assert docstring.partition("\n")[0][:40] in capsys.readouterr().out


def test_help_names_own_words_and_every_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["/bin/archipelago", "forget"])
    assert cli.run(["forget", "--help"]) == 0
    said = capsys.readouterr().out
    assert "archipelago forget run_dir=" in said and "python jobs/forget.py" not in said
    assert "task=..." in said and "erase=false" in said
    assert "training.steps=500" in said and "cluster.train.num_workers=1" in said


def test_the_handbook_has_every_setting_with_its_comment() -> None:
    told = {e.key: e for group in (None, *handbook.groups()) for e in handbook.entries(group)}
    missing = {
        key
        for key in flatten(load([]))
        if not any(key == name or key.startswith(f"{name}.") for name in told)
    }
    assert missing == set()
    assert told["identifier.share"].about.startswith("(cascade or mllm) of images that `cascade`")
    assert "identifier.options" not in told and told["identifier.width"].about.startswith("compact")
    assert told["stream.held_out"].about.startswith("share of the training split")
    assert told["training.checkpoint_every"].value == "100"
    assert told["run_dir"].about.startswith("Where everything is written")
    assert told["cluster.identify.lease_s"].about.endswith("higher = patient")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lern"], "archipelago: 'lern' is no verb; did you mean learn?\n"),
        (["xyz"], "archipelago: 'xyz' is no verb; archipelago --help lists them\n"),
        (["learn", "training.stepz=1"], "sequence: training.stepz: unknown key; did you mean"),
        (["forget", "run_dir=/nowhere"], "forget: task: must be given, task=..."),
        (["retest", "run_dir=/x", "seed=1"], "retest: seed: unknown here"),
        (["evaluate"], "evaluate: run_dir: must be given"),
        (["evaluate", "run_dir=/nowhere/at/all"], "this is not a run folder"),
        (["diff", "a=/nowhere", "b=/x"], "diff: a=/nowhere: /nowhere/run.json does not exist"),
        (["publish"], "publish: run_dir: must be given"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


# -- before a run --------------------------------------------------------------------------------


def test_check_tells_what_would_be_learned(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["check", *words(place, f"run_dir={tmp_path / 'new'}")]) == 0
    said = capsys.readouterr().out
    assert "gda_per_task would learn 2 domains in 2 stages" in said
    assert not (tmp_path / "new").exists(), "nothing is written"
    assert cli.run(["check", *words(place, f"run_dir={place / 'run'}")]) == 0
    assert "learned already: apples, boats" in " ".join(capsys.readouterr().out.split())


def test_check_tells_every_fault(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet_domain(tmp_path / "stream", "bad", classes=2, train=3, test=2, size=32)
    for file in (tmp_path / "stream" / "bad").glob("*.parquet"):
        table = pq.read_table(file)
        broken = pa.array([{"bytes": b"no image", "path": None}] * len(table), table["image"].type)
        pq.write_table(
            table.set_column(table.schema.get_field_index("image"), "image", broken), file
        )
    arguments = words(
        place,
        f"stream.root={tmp_path / 'stream'}",
        "stream.order=null",
        f"run_dir={tmp_path / 'new'}",
        "cluster.train.num_workers=5",
    )
    assert cli.run(["check", *arguments]) == 2
    err = capsys.readouterr().err
    assert "training.batch_size=64: does not divide" in err
    assert "domain 'bad': none of 10 images can be used" in err
    assert cli.run(["check", *words(place, f"run_dir={place / 'run'}", "seed=7")]) == 2
    assert "seed was 0 and is now 7" in capsys.readouterr().err


def test_plan_says_what_to_expect(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["plan", *words(place, f"run_dir={tmp_path / 'new'}")]) == 0
    said = capsys.readouterr().out
    assert "method.name=gda_per_task" in said and "time of gda_per_task, about" in said
    assert "images to decode" in said and "72" in said
    assert not (tmp_path / "new").exists()


# -- after it ------------------------------------------------------------------------------------


def test_evaluate_measures_own_and_new_images(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fresh(place, tmp_path)
    assert cli.run(["evaluate", f"run_dir={run}"]) == 0
    rows = json.loads((run / "evaluate/newest.json").read_text())["rows"]
    assert [(row["task"], row["learned"]) for row in rows] == [(task, True) for task in TASKS]
    report = json.loads((run / "report.json").read_text())
    last = report["settings"]["mtil_given"]["matrix"][-1]
    assert [row["given"] for row in rows] == pytest.approx(last, abs=1e-4)
    merged = report["settings"]["xtail_merged"]["matrix"][-1]
    assert [row["free"] for row in rows] == pytest.approx(merged, abs=1e-4)
    capsys.readouterr()
    new = ["stream=parquet", f"stream.root={place / 'stream'}", "stream.order=[cats]"]
    assert cli.run(["evaluate", f"run_dir={run}", "name=cats", *new]) == 0
    (row,) = json.loads((run / "evaluate/cats.json").read_text())["rows"]
    assert not row["learned"] and row["free"] is None and 0 <= row["unseen"] <= 100
    assert "cats (not learned)" in capsys.readouterr().out
    assert cli.run(["evaluate", f"run_dir={run}", "seed=1"]) == 2


def test_retest_fails_where_a_domain_got_worse(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fresh(place, tmp_path)
    assert cli.run(["retest", f"run_dir={run}"]) == 0
    file = run / "evaluation/001.json"
    record = json.loads(file.read_text())
    record["accuracy"]["mtil_given"][0] = 100.0
    file.write_text(json.dumps(record))
    capsys.readouterr()
    found = cli.run(["retest", f"run_dir={run}", "tolerance=0.5"])
    measured = json.loads((place / "run/evaluation/001.json").read_text())
    worse = 100.0 - measured["accuracy"]["mtil_given"][0]
    assert found == (1 if worse > 0.5 else 0)
    assert ("points less than its report says" in capsys.readouterr().out) == bool(found)


def test_diff_shows_settings_figures_and_intervals(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = archipelago.learn(tmp_path / "other", **settings(place) | {"method": "ridge_per_task"})
    capsys.readouterr()
    assert cli.run(["diff", f"a={place / 'run'}", f"b={other}"]) == 0
    said = capsys.readouterr().out
    assert "method.name" in said and "ridge_per_task" in said
    rows = [line for line in said.splitlines() if "all classes of" in line and " last " in line]
    assert len(rows) == 1 and "[" in rows[0] and "xtail" not in said
    assert cli.run(["diff", f"a={place / 'run'}", f"b={place / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert "settings that differ" not in said and "+0.0 [+0.0, +0.0]" in said


def test_relearn_takes_the_images_as_they_are_now(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "stream", tmp_path / "stream")
    run = tmp_path / "run"
    archipelago.learn(run, **settings(place) | {"stream.root": str(tmp_path / "stream")})
    before = archipelago.open(run)
    parquet_domain(tmp_path / "stream", "apples", classes=3, train=14, test=4, size=32)
    assert cli.run(["relearn", f"run_dir={run}", "task=pears"]) == 2, "nothing is forgotten for it"
    assert list(archipelago.open(run).tasks) == list(TASKS)
    assert cli.run(["relearn", f"run_dir={run}", "task=apples"]) == 0
    after = archipelago.open(run)
    assert list(after.tasks) == list(TASKS)
    count = {
        name: int(model.tasks["apples"].sums.counts.sum())
        for name, model in (("before", before), ("after", after))
    }
    assert count == {"before": 24, "after": 42}
    images = np.full((2, 32, 32, 3), 90, np.uint8)
    same = [model.answer(images, task="boats")[0].classes for model in (before, after)]
    assert same[0] == same[1], "the other domain answers as it did"
    assert (
        cli.run(["learn", *words(place, f"run_dir={run}", f"stream.root={tmp_path / 'stream'}")])
        == 0
    )


def test_relearning_that_dies_in_between_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from archipelago.actors import learning

    run = fresh(place, tmp_path)

    def dies(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(learning, "_learn", dies)
        assert cli.run(["relearn", f"run_dir={run}", "task=apples"]) == 1
    assert list(archipelago.open(run).tasks) == ["boats"]
    assert list(archipelago.open(run, manifest=2).tasks) == list(TASKS), "nothing is lost"
    assert cli.run(["relearn", f"run_dir={run}", "task=apples"]) == 0
    assert list(archipelago.open(run).tasks) == list(TASKS)
    one, two = (
        archipelago.open(where).tasks["apples"].sums.means for where in (place / "run", run)
    )
    assert np.array_equal(one, two)


# -- Python --------------------------------------------------------------------------------------


def test_the_python_face_needs_nothing_until_it_is_used() -> None:
    script = f"import sys, archipelago; print(sorted(set(sys.modules) & {HEAVY | {'httpx2'}}))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
    assert archipelago.Client.__name__ == "Client"
    assert issubclass(archipelago.LearnedModel, object)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        archipelago.nothing  # noqa: B018
    assert archipelago.__version__ in (ROOT / "pyproject.toml").read_text()


def test_learn_refuses_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.stepz: unknown key"):
        archipelago.learn(tmp_path / "run", **{"training.stepz": 1})


@pytest.mark.parametrize(
    "value", ["plain", "with space", 'quo"ted', "back\\slash", "a=b,[c]", "5", "", "null", "ü$x{y}"]
)
def test_python_values_arrive_as_they_are(value: str, tmp_path: Path) -> None:
    given = {"stream.root": value, "stream.order": [value, "b"], "seed": 3, "tracking.uri": None}
    found = load(as_words(given))
    assert (found.stream.root, found.stream.order) == (value, [value, "b"])
    assert (found.seed, found.tracking.uri) == (3, None)
