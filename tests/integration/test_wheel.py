"""The wheel in a clean environment: what it installs, and that a person can work with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers import png

ROOT = Path(__file__).resolve().parents[2]
IN_PROCESS = [
    "cluster.train.num_workers=0",
    "cluster.encode.num_workers=0",
    "cluster.data.num_workers=0",
    "tracking=off",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is under version control, as a release is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out), str(source)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (found,) = out.glob("*.whl")
    return found


@pytest.mark.slow
def test_nothing_but_archipelago_is_installed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"archipelago"}
    inside = {
        "py.typed",
        "cli.py",
        "conf/sequence.yaml",
        "conf/method/archipelago.yaml",
        "pipeline/model/weights/clip-tiny/basis.safetensors",
        "actors/page/index.html",
        "pipeline/evaluation/report.html",
        "pipeline/identifiers/weights/mllm-tiny/config.json",
    }
    assert {f"archipelago/{name}" for name in inside} <= set(names)
    code = {
        f"archipelago/{file.relative_to(ROOT)}"
        for part in ("pipeline", "actors", "jobs")
        for file in (ROOT / part).rglob("*.py")
    }
    assert code <= set(names)


def _interpreter(version: str) -> str | None:
    """A Python of this version that works here."""
    found = shutil.which(f"python{version}")
    if found is None:
        return None
    asked = subprocess.run([found, "--version"], capture_output=True, check=False)
    return found if asked.returncode == 0 else None


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_it_installs_for_later_pythons(version: str, wheel: Path, tmp_path: Path) -> None:
    """The package compiles and its command answers; torch and Ray are left out to be quick."""
    interpreter = _interpreter(version)
    if interpreter is None:
        pytest.skip(f"no Python {version} on this machine")
    home = tmp_path / "venv"
    subprocess.run([interpreter, "-m", "venv", str(home)], check=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True, timeout=120)
    subprocess.run([*pip, "typer", "pydantic", "rich", "pyyaml"], check=True, timeout=300)
    (package,) = home.glob("lib/python*/site-packages/archipelago")
    subprocess.run(
        [home / "bin" / "python", "-W", "error", "-m", "compileall", "-q", str(package)], check=True
    )
    helped = subprocess.run(
        [home / "bin" / "archipelago", "learn", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "archipelago learn" in helped.stdout and "training.steps=500" in helped.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_person_installs_it_learns_and_predicts(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python, command = home / "bin" / "python", home / "bin" / "archipelago"
    constraints = str(ROOT / "constraints.txt")
    install = [str(python), "-m", "pip", "install", "-q", "-c", constraints]
    subprocess.run([*install, "torch", "torchvision"], check=True, timeout=900)
    subprocess.run([*install, str(wheel)], check=True, timeout=900)
    empty = tmp_path / "empty"
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        folder = empty / "images" / "colours" / name
        folder.mkdir(parents=True)
        for at in range(12):
            (folder / f"{at}.png").write_bytes(png(colour, 64, seed=at))
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["RAY_AUTH_MODE"] = "disabled"

    def call(*words: str) -> str:
        found = subprocess.run(
            [str(command), *words],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert found.returncode == 0, found.stderr[-2000:]
        return found.stdout

    stream = ["stream=folder", f"stream.root={empty / 'images'}"]
    assert "learn " in call("--help")
    assert call("version").startswith("archipelago 0.")
    assert "would learn 1 domains" in call("check", *stream, "run_dir=run")
    call("learn", *stream, "run_dir=run", "method.options.group=off", *IN_PROCESS)
    report = json.loads((empty / "run" / "report.json").read_text())
    assert report["status"] == "complete"
    call("predict", "run_dir=run", f"input={empty / 'images'}", "output=labels")
    rows = [
        row
        for file in (empty / "labels").glob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    ]
    assert len(rows) == 24
    right = sum(Path(row["path"]).parent.name == row["label"] for row in rows)
    assert right >= 22
    answered = subprocess.run(
        [
            str(python),
            "-c",
            "import archipelago; m = archipelago.open('run');"
            f"print(m.answer([r'{empty / 'images/colours/red/0.png'}'])[0].classes[0][0])",
        ],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answered.stdout.strip() == "red"
