"""What Ray uploads of a working directory: how much at most, and what is left out."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging

ROOT = Path(__file__).resolve().parents[2]


def test_the_documented_limits_are_rays() -> None:
    text = " ".join((ROOT / "docs" / "robustness.md").read_text().split())
    assert f"{ray_constants.DASHBOARD_CLIENT_MAX_SIZE >> 20} MiB at most" in text
    assert f"below {packaging.GCS_STORAGE_MAX_SIZE >> 20} MiB" in text


def test_what_is_ignored_is_not_uploaded(tmp_path: Path) -> None:
    place = tmp_path / "work"
    for name in ("data/big", "code.py", "sub/kept", "sub/dropped", "gone"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("x")
    (place / ".rayignore").write_text("data/\n")
    (place / "sub" / ".rayignore").write_text("dropped\n")
    (place / ".gitignore").write_text("gone\n")
    for honoured in (True, False):
        package = tmp_path / f"{honoured}.zip"
        packaging.create_package(str(place), package, include_gitignore=honoured)
        names = set(zipfile.ZipFile(package).namelist())
        files = {name for name in names if "ignore" not in name}
        assert files == {"code.py", "sub/kept"} | (set() if honoured else {"gone"})
