"""Any `AutoModelForImageTextToText` of transformers, in this process.

`likelihood` reads log p(description | image) from the model's own predictions and takes off the
same without the image. What stands before the description is the same for all descriptions, so its
keys and values are computed once per image; the first time, that is checked against the plain way.

Shapes: B images, T descriptions, L tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers.choices import Choices
from archipelago.pipeline.identifiers.description import ANSWER, LIKELIHOOD, describe_prompt
from archipelago.pipeline.identifiers.processor import Processor, loading
from archipelago.pipeline.identifiers.scorer import Scores, register_driver
from archipelago.pipeline.identifiers.sentences import fits, most_fitting, sentences_of

log = logging.getLogger(__name__)

DTYPES = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DESCRIBE_TOKENS, ANSWER_TOKENS = 48, 4
TOLERANCE = 0.02  # nats a token, between the plain way and the one with kept keys and values


@register_driver("transformers")
class TransformersScorer:
    """A model loaded from a directory or the hub; see `pipeline.identifiers.scorer.Scorer`.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """

    parallel = 1
    remote = False

    def __init__(self, settings: MultimodalSettings, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.settings = settings
        cuda = torch.cuda.is_available()
        if settings.device == "cuda" and not cuda:
            raise UserError("identifier.device=cuda: there is no CUDA device; use auto or cpu")
        self.device = "cuda" if cuda and settings.device != "cpu" else "cpu"
        self.processor = Processor(settings)
        self._model = _load(settings, self.processor.where, self.device)
        self.model = f"{self.processor.short}@{_digest(self._model)}"
        self._priors: dict[str, float] = {}
        self._keeps: bool | None = None  # whether keys and values can be kept; None = not tried

    # -- the contract ------------------------------------------------------------------------

    @torch.no_grad()
    def describe(self, images: np.ndarray, classes: Sequence[str], seed: int) -> str:
        """A sentence on each image; the few that together suit all of them best."""
        prompt = LIKELIHOOD if self.processor.taught else describe_prompt(classes)
        size = self.settings.batch_size
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        answers: list[str] = []
        for part in parts:
            answers += self._generate(self._inputs(part, [prompt] * len(part)), DESCRIBE_TOKENS)

        def fit(texts: list[str]) -> np.ndarray:
            return np.concatenate([self._likelihood(part, texts) for part in parts])

        return most_fitting(answers, fit, self.settings.sentences)

    @torch.no_grad()
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
        inputs = self._inputs(images, choices.prompts)
        if scoring == "choice":
            return Scores(choices.by_option(self._letter_scores(inputs, choices.letters)))
        return choices.read(self._generate(inputs, ANSWER_TOKENS))

    # -- inputs ------------------------------------------------------------------------------

    def _inputs(self, images: np.ndarray | None, prompts: Sequence[str]) -> dict[str, Any]:
        """Tensors for one image and one prompt each; without images for prompts alone."""
        pictures = None if images is None else [Image.fromarray(image) for image in images]
        if not self.processor.templated:
            texts = self.processor.plain(prompts, pictures is not None)
            shown = {} if pictures is None else {"images": pictures}
            found = self.processor.hf(text=texts, return_tensors="pt", padding=True, **shown)
            return dict(found.to(self.device))
        found = self.processor.hf.apply_chat_template(
            self.processor.chats(prompts, pictures),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        found = found.to(self.device)
        return {
            k: v.to(self._model.dtype) if v.is_floating_point() else v for k, v in found.items()
        }

    def _ids(self, text: str) -> Tensor:
        return torch.tensor([self.processor.ids(text)], device=self.device)

    # -- likelihood --------------------------------------------------------------------------

    def _likelihood(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """log p(text | image) - log p(text), (B, T)."""
        inputs = self._inputs(images, [LIKELIHOOD] * len(images))
        ids = [self._ids(text) for text in texts]
        if self._keeps is None:
            self._keeps = self._try_to_keep(images[:1], ids[0])
        read = self._read_kept if self._keeps else self._read_plain
        prior = np.array([self._prior(text) for text in texts], np.float32)
        return read(inputs, ids).float().cpu().numpy() - prior

    def _prior(self, text: str) -> float:
        """log p(text) of the model without an image."""
        if text not in self._priors:
            inputs = self._inputs(None, [LIKELIHOOD])
            self._priors[text] = float(self._read_plain(inputs, [self._ids(text)])[0, 0])
        return self._priors[text]

    def _try_to_keep(self, image: np.ndarray, ids: Tensor) -> bool:
        plain = self._read_plain(self._inputs(image, [LIKELIHOOD]), [ids])
        try:  # twice the same text: the second time after the cache was cut back
            kept = self._read_kept(self._inputs(image, [LIKELIHOOD]), [ids, ids])
        except Exception as error:
            log.info("%s: scored without kept keys and values (%s)", self.model, error)
            return False
        return bool(((kept - plain).abs() <= TOLERANCE * ids.shape[1]).all())

    def _read_plain(self, inputs: dict[str, Any], texts: list[Tensor]) -> Tensor:
        """log p(text | inputs), (B, T), everything anew for each text."""
        start, found = inputs["input_ids"].shape[1], []
        for ids_L in texts:
            longer = self._model(**_extended(inputs, ids_L[:, :-1]), use_cache=False)
            found.append(_sum_of_logs(longer.logits[:, start - 1 :], ids_L))
        return torch.stack(found, dim=1)

    def _read_kept(self, inputs: dict[str, Any], texts: list[Tensor]) -> Tensor:
        """The same; what stands before the texts is computed once."""
        first = self._model(**inputs, use_cache=True)
        cache, last_BV = first.past_key_values, first.logits[:, -1:]
        found = []
        for ids_L in texts:
            logits = last_BV
            if ids_L.shape[1] > 1:
                ids_BL = ids_L[:, :-1].expand(len(last_BV), -1)
                mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids_BL)], dim=1)
                rest = self._model(
                    input_ids=ids_BL, attention_mask=mask, past_key_values=cache, use_cache=True
                )
                logits = torch.cat([last_BV, rest.logits], dim=1)
                cache.crop(-ids_BL.shape[1])
            found.append(_sum_of_logs(logits, ids_L))
        return torch.stack(found, dim=1)

    # -- choice and text ---------------------------------------------------------------------

    def _letter_scores(self, inputs: dict[str, Any], letters: str) -> np.ndarray:
        """Log probability of each letter among the letters, (B, options)."""
        logits_BV = self._model(**inputs, use_cache=False).logits[:, -1].float()
        places = [logits_BV[:, self.processor.letter_ids(a)].logsumexp(dim=1) for a in letters]
        return torch.stack(places, dim=1).log_softmax(dim=1).cpu().numpy()

    def _generate(self, inputs: dict[str, Any], tokens: int) -> list[str]:
        start = inputs["input_ids"].shape[1]
        found = self._model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )
        return self.processor.tokenizer.batch_decode(found[:, start:], skip_special_tokens=True)


def _sum_of_logs(logits_BLV: Tensor, ids_L: Tensor) -> Tensor:
    """Sum over tokens of log p(token), (B,)."""
    logs = logits_BLV.float().log_softmax(dim=-1)
    return logs.gather(2, ids_L.expand(len(logs), -1)[..., None])[..., 0].sum(dim=1)


def _extended(inputs: dict[str, Any], ids_L: Tensor) -> dict[str, Any]:
    """The inputs with more tokens at the end of every row."""
    count = len(inputs["input_ids"])
    ids_BL = ids_L.expand(count, -1)
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], ids_BL], dim=1)
    for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            value = 1 if name == "attention_mask" else 0
            more = torch.full_like(ids_BL, value)
            longer[name] = torch.cat([inputs[name], more], dim=1)
    return longer


def _load(settings: MultimodalSettings, where: str, device: str) -> Any:
    from transformers import AutoModelForImageTextToText  # seconds

    options = {} if settings.attention == "auto" else {"attn_implementation": settings.attention}
    dtype = torch.float32 if (settings.dtype, device) == ("auto", "cpu") else DTYPES[settings.dtype]
    with loading(settings):
        model = AutoModelForImageTextToText.from_pretrained(where, dtype=dtype, **options)
    return model.eval().to(device)


def _digest(model: torch.nn.Module) -> str:
    """12 hex digits of names, shapes and a sample of every weight: quick for large models too."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        few = flat[:: max(1, len(flat) // 64)].float().cpu().numpy()
        total.update(f"{name}{tuple(tensor.shape)}".encode() + few.tobytes())
    return total.hexdigest()[:12]
