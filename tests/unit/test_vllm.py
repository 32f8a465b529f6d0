"""The driver `vllm` reads from vLLM's answers what the driver `transformers` computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers.drivers import vllm
from archipelago.pipeline.identifiers.scorer import Scorer, build_scorer
from tests.unit import vllm_stand_in as stand_in
from tests.unit.tiny_mllm import save_mllm

TEXTS = ("a photo of a cat", "grey noise", "answer A", "x")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def settings(model: Path | str, driver: str = "vllm", **more: object) -> MultimodalSettings:
    return MultimodalSettings.model_validate(
        {"name": "mllm", "model": str(model), "driver": driver, **more}
    )


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "plain"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The two drivers on one model."""
    folder = save_mllm(tmp_path_factory.mktemp("mllm"), chat=request.param)
    known = build_scorer(settings(folder, "transformers"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        stand_in.put_in_place(monkeypatch)
        yield known, build_scorer(settings(folder, dtype="bf16"))


def test_likelihood_reads_the_description_s_tokens_and_no_others(
    both: tuple[Scorer, Scorer],
) -> None:
    known, scorer = both
    expected = known.score(IMAGES, TEXTS, "likelihood", 0).values
    values = scorer.score(IMAGES, TEXTS, "likelihood", 0).values
    assert values.shape == (3, 5) and np.ptp(values[:, 0]) > 0.1
    np.testing.assert_allclose(values, expected, atol=1e-3)
    before = stand_in.LLM.asked
    again = scorer.score(IMAGES[1:2], TEXTS[:2], "likelihood", 5).values
    np.testing.assert_allclose(again[0, :2], expected[1, :2], atol=1e-3)
    assert stand_in.LLM.asked - before == 2, "texts without an image are read once"


def test_letters_and_text_are_given_back_to_their_options(both: tuple[Scorer, Scorer]) -> None:
    known, scorer = both
    for seed in (3, 4):
        expected = known.score(IMAGES, TEXTS, "choice", seed).values
        values = scorer.score(IMAGES, TEXTS, "choice", seed).values
        np.testing.assert_allclose(values, expected, atol=1e-3)
        np.testing.assert_allclose(np.exp(values).sum(axis=1), 1.0, atol=1e-5)
    spoken, heard = (one.score(IMAGES, TEXTS, "generate", 3) for one in both)
    np.testing.assert_array_equal(heard.values, spoken.values)
    assert heard.parse_failures == spoken.parse_failures
    assert scorer.describe(IMAGES, ["cat"], 0) == known.describe(IMAGES, ["cat"], 0)


def test_an_answer_in_text_is_read_strictly(
    both: tuple[Scorer, Scorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = both[1]
    order = np.array([[1, 0, 2], [0, 1, 2], [1, 0, 2]])
    monkeypatch.setattr("archipelago.pipeline.identifiers.choices.orders", lambda *_: order)
    monkeypatch.setattr(scorer, "_texts", lambda *_: ["A", " (C) ", "answer A"])
    found = scorer.score(IMAGES, TEXTS[:2], "generate", 0)
    assert found.values.argmax(axis=1)[:2].tolist() == [1, 2]
    assert np.isnan(found.values[2]).all() and found.parse_failures == 1


def test_a_prompt_whose_end_was_rewritten_is_refused() -> None:
    logs = [None, {7: stand_in.Logprob(-1.0)}, {8: stand_in.Logprob(-2.0)}]
    answer = stand_in.RequestOutput([5, 7, 8], logs, [])
    assert vllm._sum_of_logs(answer, [7, 8]) == -3.0 and vllm._sum_of_logs(answer, [8]) == -2.0
    with pytest.raises(UserError, match="scoring=likelihood"):
        vllm._sum_of_logs(answer, [7, 9])


def test_settings_reach_vllm_and_what_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**more: object) -> str:
        with pytest.raises(UserError) as caught:
            build_scorer(settings(tmp_path / "m", **more))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    save_mllm(tmp_path / "m")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install '.[mllm]'" in refused()
    monkeypatch.undo()
    stand_in.put_in_place(monkeypatch)
    assert "identifier.device=cpu" in refused(device="cpu")
    assert "identifier.attention=sdpa" in refused(attention="sdpa")
    assert "cannot be loaded" in refused(options={"tokens": 5})
    scorer = build_scorer(
        settings(tmp_path / "m", dtype="bf16", options={"gpu_memory_utilization": 0.4})
    )
    assert stand_in.LLM.made[-1] == {
        "dtype": "bfloat16",
        "enable_prefix_caching": True,
        "limit_mm_per_prompt": {"image": 1},
        "gpu_memory_utilization": 0.4,
    }
    (tmp_path / "m" / "more.json").write_text("{}")
    other = build_scorer(settings(tmp_path / "m"))
    assert scorer.model.startswith("m@") and scorer.model != other.model
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "cluster.identify.num_gpus" in refused()


@pytest.mark.gpu
def test_on_a_gpu_with_the_real_package() -> None:
    pytest.importorskip("vllm", reason="needs the extra vllm")
    options = {"gpu_memory_utilization": 0.3, "enforce_eager": True}
    scorer = build_scorer(settings("mllm-tiny", dtype="fp32", options=options))
    known = build_scorer(settings("mllm-tiny", "transformers", dtype="fp32"))
    for scoring in ("likelihood", "choice"):
        expected = known.score(IMAGES, TEXTS, scoring, 0).values
        values = scorer.score(IMAGES, TEXTS, scoring, 0).values
        np.testing.assert_allclose(values, expected, atol=0.05)
    assert scorer.score(IMAGES, TEXTS, "generate", 0).values.shape == (3, 5)
