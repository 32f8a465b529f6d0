"""The stored baselines: what they hold, and that a training step still costs what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archipelago.pipeline.benchmark import baseline
from archipelago.pipeline.config import load

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
FILES = sorted(FOLDER.glob("*.json"))
TOLERANCE = 2.0  # times more: processors differ in what they do fast


def test_there_are_baselines_and_they_are_whole() -> None:
    assert FILES
    for file in FILES:
        found = json.loads(file.read_text())
        figures = found["ms_an_image"]
        assert min(figures.values()) > 0 and found["machine"]["processor"]
        assert found["in_feature_passes"] == pytest.approx(baseline.ratios(figures))
        assert set(found["starts"]) == set(baseline.STARTS)


def test_a_training_step_costs_no_more_passes_than_it_did() -> None:
    """Ratios of CPU time, so that neither the machine nor what else it does decides."""
    stored = json.loads((FOLDER / "2-core-cpu.json").read_text())["in_feature_passes"]
    figures = baseline.steps(lambda name: load([f"method={name}"]), ("archipelago", "trge"), (10,))
    for name, passes in baseline.ratios(figures).items():
        assert passes < TOLERANCE * stored[name], f"{name}: {passes:.2f}, was {stored[name]:.2f}"


def test_a_start_is_measured_in_a_process_of_its_own() -> None:
    found = baseline.starts({"light": "json", "heavy": "numpy"})
    assert found["light"]["mib"] < found["heavy"]["mib"]
    assert 0 < found["light"]["seconds"] < found["heavy"]["seconds"]
