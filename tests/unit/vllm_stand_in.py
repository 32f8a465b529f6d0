"""What the driver `vllm` uses of vLLM 0.33.0, with its names, signatures and shapes, on a CPU.

Behind it stands the same model in transformers, so that both drivers must find the same numbers. As
in vLLM: prompts are tokens with one mark for the image, which becomes as many tokens as the image
has; `prompt_logprobs` has one entry for each token of the longer prompt, None for the first;
log probabilities are those before `allowed_token_ids` is applied.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL.Image import Image

MARK, IMAGE_TOKENS = 3, 4  # of tiny_mllm
EOS = 2


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int | None = 16
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    detokenize: bool = True


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]


class LLM:
    made: list[dict[str, Any]] = []  # noqa: RUF012
    asked = 0

    def __init__(self, model: str, *, dtype: str = "auto", seed: int = 0, **kwargs: Any) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if unknown := set(kwargs) - {
            "enable_prefix_caching",
            "limit_mm_per_prompt",
            "gpu_memory_utilization",
        }:
            raise TypeError(f"unexpected keyword arguments {sorted(unknown)}")
        LLM.made.append({"dtype": dtype, **kwargs})
        self.processor = AutoProcessor.from_pretrained(model)
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()

    def generate(
        self,
        prompts: list[dict[str, Any]],
        sampling_params: SamplingParams | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        LLM.asked += len(prompts)
        assert sampling_params is not None and sampling_params.temperature == 0.0
        return [self._one(prompt, sampling_params) for prompt in prompts]

    @torch.no_grad()
    def _logs(self, ids: list[int], picture: Image | None) -> torch.Tensor:
        more = {}
        if picture is not None:
            more = dict(self.processor.image_processor(picture, return_tensors="pt"))
        return self.model(input_ids=torch.tensor([ids]), **more).logits[0].log_softmax(dim=-1)

    def _one(self, prompt: dict[str, Any], params: SamplingParams) -> RequestOutput:
        assert set(prompt) <= {"prompt_token_ids", "multi_modal_data"}
        picture = prompt.get("multi_modal_data", {}).get("image")
        assert prompt["prompt_token_ids"].count(MARK) == (picture is not None)
        ids: list[int] = []
        for token in prompt["prompt_token_ids"]:
            ids += [token] * (IMAGE_TOKENS if token == MARK else 1)
        logs_LV = self._logs(ids, picture)
        entries: list[dict[int, Logprob] | None] | None = None
        if params.prompt_logprobs is not None:
            entries = [None]
            for at, token in enumerate(ids[1:]):
                entries.append({token: Logprob(float(logs_LV[at, token]))})
        answer: list[int] = []
        sampled: list[dict[int, Logprob]] = []
        for _ in range(params.max_tokens or 16):
            last_V = logs_LV[-1]
            if params.allowed_token_ids is not None:
                allowed = torch.tensor(params.allowed_token_ids)
                answer.append(int(allowed[last_V[allowed].argmax()]))
            else:
                answer.append(int(last_V.argmax()))
            wanted = [answer[-1], *(params.logprob_token_ids or ())]
            sampled.append({token: Logprob(float(last_V[token])) for token in wanted})
            if answer[-1] == EOS:
                break
            logs_LV = self._logs([*ids, *answer], picture)
        text = self.processor.tokenizer.decode(answer, skip_special_tokens=True)
        shown = None if params.logprob_token_ids is None else sampled
        completion = CompletionOutput(0, text if params.detokenize else "", answer, shown)
        return RequestOutput(ids, entries, [completion])


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vLLM and a GPU were there."""
    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    vars(module).update(LLM=LLM, SamplingParams=SamplingParams)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "asked", 0)
