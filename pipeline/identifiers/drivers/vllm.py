"""Any multimodal model that vLLM runs, in this process, on a GPU; the package is an extra.

The questions, tokens and letters are those of the driver `transformers`; vLLM schedules them.
Prompts are given as tokens with the image beside them: vLLM puts the image's own tokens in the
place of the mark, so that whatever follows keeps its distance from the end. That is how
`likelihood` finds a description in `prompt_logprobs`: its tokens are the last ones.

vLLM does not read its prefix cache for requests that want `prompt_logprobs`; there, an image's
encoding is reused from one description to the next, its keys and values are not. `choice` and
`generate` profit from the prefix cache.

Shapes: B images, T descriptions.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers.choices import Choices
from archipelago.pipeline.identifiers.description import ANSWER, LIKELIHOOD, describe_prompt
from archipelago.pipeline.identifiers.processor import Processor, folder_digest, loading
from archipelago.pipeline.identifiers.scorer import Scores, register_driver
from archipelago.pipeline.identifiers.sentences import fits, most_fitting, sentences_of

DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DESCRIBE_TOKENS, ANSWER_TOKENS = 48, 4
# Nothing about its use leaves the machine, and its progress is not ours to print.
SILENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


@register_driver("vllm")
class VllmScorer:
    """A model run by vLLM; see `pipeline.identifiers.scorer.Scorer`.

    `identifier.options` goes to `vllm.LLM` as it is, for instance `gpu_memory_utilization`.

    Raises:
        UserError: no GPU, no vLLM, no such model, or vLLM cannot run it.
    """

    parallel = 1
    remote = False

    def __init__(self, settings: MultimodalSettings, threads: int = 0) -> None:
        if not torch.cuda.is_available():
            raise UserError(
                "identifier.driver=vllm: needs a CUDA device; give the pool one with"
                " cluster.identify.num_gpus, or use identifier.driver=transformers"
            )
        for name, value in SILENT.items():
            os.environ.setdefault(name, value)
        self.settings = settings
        self._vllm: Any = importlib.import_module("vllm")
        self.processor = Processor(settings)
        chosen = {
            "dtype": DTYPES[settings.dtype],
            "enable_prefix_caching": True,
            "limit_mm_per_prompt": {"image": 1},
        }
        with loading(settings):
            self._llm = self._vllm.LLM(self.processor.where, **{**chosen, **settings.options})
        self.model = f"{self.processor.short}@{_digest(self.processor.where)}"
        self._priors: dict[str, float] = {}

    # -- the contract ------------------------------------------------------------------------

    def describe(self, images: np.ndarray, classes: Sequence[str], seed: int) -> str:
        """A sentence on each image; the few that together suit all of them best."""
        prompt = LIKELIHOOD if self.processor.taught else describe_prompt(classes)
        answers = self._texts(images, [prompt] * len(images), DESCRIBE_TOKENS)
        most = self.settings.sentences
        return most_fitting(answers, lambda texts: self._likelihood(images, texts), most)

    def score(
        self, images: np.ndarray, descriptions: Sequence[str], scoring: str, seed: int
    ) -> Scores:
        """See `Scorer.score`."""
        if scoring == "likelihood":
            values = fits(descriptions, lambda texts: self._likelihood(images, texts))
            none = np.zeros((len(images), 1), np.float32)
            return Scores(np.concatenate([values, none], axis=1))
        if self.processor.taught:  # with one sentence an option
            descriptions = [sentences_of(text)[0] for text in descriptions]
        choices = Choices.of(images, descriptions, seed, "" if self.processor.taught else ANSWER)
        if scoring == "choice":
            places = self._letter_scores(images, choices.prompts, choices.letters)
            return Scores(choices.by_option(places))
        return choices.read(self._texts(images, choices.prompts, ANSWER_TOKENS))

    # -- requests ----------------------------------------------------------------------------

    def _prompts(self, images: np.ndarray | None, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """vLLM's `TokensPrompt` for one image and one prompt each, or for prompts alone."""
        pictures = None if images is None else [Image.fromarray(image) for image in images]
        if self.processor.templated:
            chats = self.processor.chats(prompts, pictures)
            texts = self.processor.hf.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=False
            )
        else:
            texts = self.processor.plain(prompts, pictures is not None)
        found: list[dict[str, Any]] = [{"prompt_token_ids": self._tokens(text)} for text in texts]
        for request, picture in zip(found, pictures or (), strict=pictures is not None):
            request["multi_modal_data"] = {"image": picture}
        return found

    def _tokens(self, text: str) -> list[int]:
        """Tokens of a whole prompt; a template may have written the first one itself."""
        tokenizer = self.processor.tokenizer
        written = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        return list(tokenizer(text, add_special_tokens=not written)["input_ids"])

    def _ask(self, requests: list[dict[str, Any]], **sampling: Any) -> list[Any]:
        """vLLM's `RequestOutput` for each request, in their order."""
        params = self._vllm.SamplingParams(temperature=0.0, **sampling)
        return self._llm.generate(requests, params, use_tqdm=False)

    def _texts(self, images: np.ndarray, prompts: Sequence[str], tokens: int) -> list[str]:
        answers = self._ask(self._prompts(images, prompts), max_tokens=tokens)
        return [answer.outputs[0].text for answer in answers]

    # -- likelihood --------------------------------------------------------------------------

    def _likelihood(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """log p(text | image) - log p(text), (B, T)."""
        ids = {text: self.processor.ids(text) for text in texts}
        fresh = [text for text in ids if text not in self._priors]
        seen = self._prompts(images, [LIKELIHOOD] * len(images))
        (blind,) = self._prompts(None, [LIKELIHOOD])
        pairs = [(prompt, text) for prompt in seen for text in texts]
        logs = self._logs([*pairs, *((blind, text) for text in fresh)], ids)
        self._priors.update(zip(fresh, logs[len(pairs) :], strict=True))
        prior = np.array([self._priors[text] for text in texts], np.float32)
        return np.array(logs[: len(pairs)], np.float32).reshape(len(images), len(texts)) - prior

    def _logs(
        self, pairs: list[tuple[dict[str, Any], str]], ids: dict[str, list[int]]
    ) -> list[float]:
        """log p(text | prompt) of each pair."""
        requests = [
            {**prompt, "prompt_token_ids": [*prompt["prompt_token_ids"], *ids[text]]}
            for prompt, text in pairs
        ]
        answers = self._ask(requests, max_tokens=1, prompt_logprobs=0, detokenize=False)
        return [
            _sum_of_logs(answer, ids[text])
            for answer, (_, text) in zip(answers, pairs, strict=True)
        ]

    # -- choice ------------------------------------------------------------------------------

    def _letter_scores(
        self, images: np.ndarray, prompts: Sequence[str], letters: str
    ) -> np.ndarray:
        """Log probability of each letter among the letters, (B, options)."""
        tokens = [self.processor.letter_ids(letter) for letter in letters]
        allowed = [token for some in tokens for token in some]
        answers = self._ask(
            self._prompts(images, prompts),
            max_tokens=1,
            allowed_token_ids=allowed,
            logprob_token_ids=allowed,
        )
        places = np.empty((len(images), len(letters)))
        for row, answer in enumerate(answers):
            found = answer.outputs[0].logprobs[0]
            for place, some in enumerate(tokens):
                places[row, place] = np.logaddexp.reduce([found[t].logprob for t in some])
        return places - np.logaddexp.reduce(places, axis=1, keepdims=True)


def _sum_of_logs(answer: Any, ids: list[int]) -> float:
    """log p of the tokens at the end of a prompt, given all before them.

    `prompt_logprobs[i]` holds token i of the prompt as predicted from those before it, with the
    image's tokens counted; the first has no prediction.
    """
    logs, count = answer.prompt_logprobs, len(ids)
    if list(answer.prompt_token_ids[-count:]) != ids or len(logs) != len(answer.prompt_token_ids):
        raise UserError(
            "identifier.scoring=likelihood: vLLM rewrites the end of this model's prompts; use"
            " identifier.scoring=choice"
        )
    return float(
        sum(logs[at][token].logprob for at, token in zip(range(-count, 0), ids, strict=True))
    )


def _digest(where: str) -> str:
    """12 hex digits of a directory's files, or of the commit of a model of the hub."""
    if Path(where).is_dir():
        return folder_digest(Path(where))
    from transformers.utils.hub import cached_file, extract_commit_hash

    return str(extract_commit_hash(cached_file(where, "config.json"), None) or "unknown")[:12]
