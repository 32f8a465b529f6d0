"""The house rules that a machine can check: who may import whom, and what no file may hold."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACE = "archipelago"
PACKAGES = ("pipeline", "actors", "jobs")
FILES = sorted(file for name in (FACE, *PACKAGES) for file in (ROOT / name).rglob("*.py"))
IDS = [str(file.relative_to(ROOT)) for file in FILES]
LONGEST = 400
# Each function there draws what it is named after.
DRAWINGS = ROOT / "pipeline" / "streams" / "atlas"

# jobs -> actors -> pipeline
ABOVE = {"pipeline": {"actors", "jobs"}, "actors": {"jobs"}, "jobs": set(), FACE: set()}
# training, evaluation, serving -> learned -> methods, identifiers -> records -> closedform, store;
# store and streams know no model.
COMMON = {"errors", "settings", "identifier_settings", "strict", "registry", "pace"}
LEARNING = {"model", "dense", "records", "closedform", "identifiers", "methods"}
ANSWERING = LEARNING | {"learned", "config"}
ALLOWED = {
    "errors": set(),
    "strict": set(),
    "identifier_settings": {"strict", "registry"},
    "settings": {"errors", "identifier_settings", "strict"},
    "registry": {"errors"},
    "redact": {"errors"},
    "pace": set(),
    "handbook": set(),
    "config": COMMON | {"redact", "handbook"},
    "closedform": {"errors"},
    "store": COMMON | {"redact"},
    "streams": COMMON,
    "dense": COMMON | {"streams"},
    "records": COMMON | {"closedform", "store"},
    "tracking": COMMON | {"export", "redact", "store", "records", "identifiers"},
    "model": COMMON,
    "identifiers": COMMON | {"redact", "closedform", "records", "model", "store", "streams"},
    "methods": COMMON | {"closedform", "records", "model"},
    "training": COMMON | {"model", "dense", "identifiers", "methods", "store", "streams"},
    "pretraining": COMMON | {"model", "identifiers", "store", "streams"},
    "learned": COMMON | ANSWERING | {"store", "streams"},
    "export": COMMON | ANSWERING | {"redact", "store"},
    "evaluation": COMMON | ANSWERING | {"store", "streams"},
    "serving": COMMON | ANSWERING | {"evaluation", "store", "streams"},
    "prediction": COMMON | ANSWERING | {"store", "streams"},
    "lifecycle": COMMON | ANSWERING | {"serving", "store", "streams"},
    # They join all of these; nobody imports them.
    "fitting": COMMON | ANSWERING | {"evaluation", "training", "store", "streams"},
    "borrowing": COMMON | ANSWERING,
    "benchmark": COMMON | ANSWERING | {"evaluation", "training", "store", "streams"},
    "planning": COMMON | {"methods", "streams"},
    "learner": COMMON
    | ANSWERING
    | {"borrowing", "evaluation", "fitting", "planning", "training", "store", "streams"},
}
# A notebook without Ray can use these; weights and hashes are their only files.
PLAIN = {"closedform", "records", "model", "identifiers", "methods", "dense", "learned"}
PLAIN |= {"prediction"}
HEAVY = {"ray", "mlflow"}


def imports(source: str) -> set[str]:
    """Dotted names of all modules that a source imports, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level)
    return found


def forbidden_imports(package: str, part: str, source: str) -> list[str]:
    """Imports that the arrows forbid in a file of `package` (and, in pipeline, of its `part`)."""
    written = imports(source)
    # One name for each module: what lies below `archipelago` is never imported without it.
    wrong = sorted(name for name in written if name.split(".")[0] in PACKAGES)
    wrong += sorted(name for name in written if name.startswith("."))
    names = {name.removeprefix(f"{FACE}.") for name in written}
    wrong += sorted(name for name in names if name.split(".")[0] in ABOVE[package])
    if package != "pipeline" or part == "__init__":
        return wrong
    for name in sorted(names):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top == "pipeline" and target and target != part and target not in ALLOWED[part]:
            wrong.append(name)
        if part in PLAIN and top in HEAVY:
            wrong.append(name)
    return wrong


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Each call of a source by the name it is called by, `a.b.c` in full."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def forbidden_calls(source: str) -> list[str]:
    """Calls that print, change the process for others, or could load a pickle or half a model."""
    wrong = []
    for name, call in calls(source):
        if name in {"print", "os.chdir", "pickle.load", "cloudpickle.load"}:
            wrong.append(name)
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load" and words.get("weights_only") != "True":
            wrong.append(name)
        if name.endswith("load_state_dict") and words.get("strict") == "False":
            wrong.append(f"{name}(strict=False)")
    return wrong


def undocumented(source: str) -> list[str]:
    """Public classes and functions of a module, and public methods of such classes, without a
    docstring; what overrides or implements another's contract is documented there."""

    def missing(nodes: list[ast.stmt], prefix: str = "") -> Iterator[str]:
        for node in nodes:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                yield prefix + node.name
            if isinstance(node, ast.ClassDef) and not node.bases:
                yield from missing(node.body, f"{prefix}{node.name}.")

    return list(missing(ast.parse(source).body))


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_arrows_point_one_way(file: Path) -> None:
    parts = file.relative_to(ROOT).with_suffix("").parts
    package, part = parts[0], parts[1]
    if package == "pipeline":
        assert part == "__init__" or part in ALLOWED, f"say in ALLOWED what {part} may import"
    assert forbidden_imports(package, part, file.read_text()) == []


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_no_forbidden_calls(file: Path) -> None:
    assert forbidden_calls(file.read_text()) == []


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_public_things_are_documented(file: Path) -> None:
    source = file.read_text()
    assert file.parent == DRAWINGS or undocumented(source) == []
    assert not source.strip() or ast.get_docstring(ast.parse(source)), "module without docstring"


@pytest.mark.parametrize("file", FILES + sorted((ROOT / "tests").rglob("*.py")), ids=str)
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LONGEST


def test_every_folder_of_python_is_a_package() -> None:
    folders = {file.parent for file in FILES}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


JOBS = sorted((ROOT / "jobs").glob("[!_]*.py"))


@pytest.mark.parametrize("file", JOBS, ids=[file.stem for file in JOBS])
def test_a_job_can_be_submitted(file: Path) -> None:
    """What only helps jobs, benchmarks or tests stands in actors or pipeline."""
    assert 'if __name__ == "__main__":' in file.read_text()


def test_there_is_something_to_check() -> None:
    assert {"pipeline/config.py", "pipeline/settings.py"} <= set(IDS)


@pytest.mark.parametrize(
    ("package", "part", "source"),
    [
        ("pipeline", "model", "import archipelago.actors.encoders"),
        ("pipeline", "store", "from archipelago.jobs import sequence"),
        ("actors", "encoders", "import archipelago.jobs.sequence"),
        ("pipeline", "model", "from archipelago.pipeline.methods.base import Method"),
        ("pipeline", "model", "from archipelago.pipeline import methods"),
        ("pipeline", "identifiers", "from archipelago.pipeline.training import loop"),
        ("pipeline", "store", "import archipelago.pipeline.model.experts"),
        ("pipeline", "streams", "from archipelago.pipeline.store.folder import Folder"),
        ("pipeline", "tracking", "from archipelago.pipeline.evaluation.metrics import last"),
        ("pipeline", "model", "def late():\n    import ray"),
        ("pipeline", "methods", "from ray import train"),
        ("pipeline", "training", "from . import loop"),
        ("jobs", "sequence", "from actors.encoders import x"),
        (FACE, "__init__", "import pipeline.learned"),
    ],
)
def test_the_check_of_arrows_can_fail(package: str, part: str, source: str) -> None:
    assert forbidden_imports(package, part, source) != []


@pytest.mark.parametrize(
    ("package", "part", "source"),
    [
        (
            "jobs",
            "sequence",
            "from archipelago.actors.encoders import x",
        ),
        (
            "actors",
            "encoders",
            "import ray\nfrom archipelago.pipeline.config import load",
        ),
        (
            "pipeline",
            "training",
            "import ray\nfrom archipelago.pipeline.methods import base",
        ),
        ("pipeline", "model", "import torch\nfrom archipelago.pipeline.model import mix"),
        ("pipeline", "model", "from archipelago.pipeline.errors import UserError"),
    ],
)
def test_the_check_of_arrows_can_pass(package: str, part: str, source: str) -> None:
    assert forbidden_imports(package, part, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "import os\nos.chdir('/')",
        "import pickle\npickle.load(file)",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "model.load_state_dict(tensors, strict=False)",
    ],
)
def test_the_check_of_calls_can_fail(source: str) -> None:
    assert forbidden_calls(source) != []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(): ...", ["f"]),
        ("class A: ...", ["A"]),
        ('class A:\n    """Doc."""\n    def f(self): ...', ["A.f"]),
        ('class A(B):\n    """Doc."""\n    def f(self): ...', []),
        ('def _f(): ...\nclass A:\n    """Doc."""\n    def __len__(self): ...', []),
    ],
)
def test_the_check_of_docstrings(source: str, names: list[str]) -> None:
    assert undocumented(source) == names


ONE_NAME = """
import collections, importlib, pathlib, pkgutil, sys
for folder in ("archipelago.pipeline", "archipelago.actors", "archipelago.jobs"):
    package = importlib.import_module(folder)
    for found in pkgutil.walk_packages(package.__path__, f"{folder}."):
        importlib.import_module(found.name)
names = collections.defaultdict(set)
for name, module in list(sys.modules.items()):
    file = pathlib.Path(getattr(module, "__file__", None) or "/").resolve()
    inside = pathlib.Path(sys.argv[1]) in file.parents and file.is_file()
    if inside and ".venv" not in file.parts:
        names[file].add(name)
assert len(names) > 200, len(names)
print([sorted(two) for two in names.values() if len(two) > 1 or "archipelago" not in min(two)])
"""


def test_no_module_has_two_names() -> None:
    """All of it imported in one process, from the folder that also holds `pipeline`."""
    found = subprocess.run(
        [sys.executable, "-c", ONE_NAME, str(ROOT)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[]"


def test_a_job_finds_its_siblings_from_anywhere(tmp_path: Path) -> None:
    """`python jobs/bench_model.py` has `jobs/` on its path, not the folder above."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", "from archipelago import jobs, actors, pipeline"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
