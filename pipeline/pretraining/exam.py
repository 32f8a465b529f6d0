"""What a trained model is good for: pictures it was not trained on, domains to be told apart.

Shapes: B images, S side, T texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipelago.pipeline.identifiers.sentences import fits, most_fitting
from archipelago.pipeline.pretraining.build import ANSWER, BEGIN, USER, image_prefix
from archipelago.pipeline.pretraining.captions import kind_caption
from archipelago.pipeline.pretraining.lessons import KIND_PROMPT, LETTERS, Known, choice, question
from archipelago.pipeline.pretraining.measures import measure
from archipelago.pipeline.pretraining.pictures import MAX_PIXELS, SIZE, generator, sources
from archipelago.pipeline.pretraining.settings import PretrainSettings
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams.decode import decode, fit
from archipelago.pipeline.streams.domain import Split
from archipelago.pipeline.streams.stream import open_stream

CHUNK = 64
SENTENCES = 3  # of a description, as in conf/identifier/mllm.yaml


class Examiner:
    """Asks a model about pictures, by likelihood and by letters.

    Args:
        model: with its image tower.
        processor: that belongs to it.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor
        self.tokenizer = processor.tokenizer
        self.prefix = image_prefix(model)

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) as the tower wants them."""
        found = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return found.to(self.model.device)

    def _ids(self, text: str) -> Tensor:
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return ids.to(self.model.device)

    @torch.no_grad()
    def look(self, images: np.ndarray) -> Tensor:
        """Image tokens as the language model reads them, (B, tokens, width)."""
        parts = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
        found = [self.model.get_image_features(self.pixels(p)).pooler_output for p in parts]
        return torch.cat(found)

    @torch.no_grad()
    def logs(self, seen: Tensor | None, text: str, asked: str = KIND_PROMPT) -> np.ndarray:
        """log p(text | image), (B,), of images as `look` gives them; of None log p(text), (1,)."""
        before = self._ids(f"{BEGIN}{USER}{'' if seen is None else self.prefix}{asked}{ANSWER}")
        after = self._ids(text)
        ids = torch.cat([before, after], dim=1)
        x = self.model.get_input_embeddings()(ids)
        if seen is not None:
            x = x.repeat(len(seen), 1, 1)
            x[:, ids[0] == self.model.config.image_token_id] = seen
        logits = self.model(inputs_embeds=x).logits[:, before.shape[1] - 1 : -1]
        logs = logits.float().log_softmax(dim=-1)
        return logs.gather(2, after.expand(len(logs), -1)[..., None]).sum(dim=(1, 2)).cpu().numpy()

    def fits(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """log p(text | image) - log p(text), (B, T)."""
        parts = self.look(images).split(CHUNK)
        columns = [
            np.concatenate([self.logs(part, text) for part in parts]) - self.logs(None, text)
            for text in texts
        ]
        return np.stack(columns, axis=1)

    @torch.no_grad()
    def say(self, images: np.ndarray, asked: str = KIND_PROMPT, most: int = 48) -> list[str]:
        """The model's own words about each image."""
        ids = self._ids(f"{BEGIN}{USER}{self.prefix}{asked}{ANSWER}").expand(len(images), -1)
        found = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=self.pixels(images),
            max_new_tokens=most,
            do_sample=False,
        )
        texts = self.tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def describe(self, images: np.ndarray) -> str:
        """Of what is said about each image, the few that together suit all of them best."""
        return most_fitting(self.say(images), lambda texts: self.fits(images, texts), SENTENCES)

    @torch.no_grad()
    def letters(self, image: np.ndarray, asked: str, options: int) -> np.ndarray:
        """Log probabilities of the options' letters among themselves, (options,)."""
        ids = self._ids(f"{BEGIN}{USER}{self.prefix}{asked}{ANSWER}")
        logits = self.model(input_ids=ids, pixel_values=self.pixels(image[None])).logits[0, -1]
        names = [int(self._ids(letter)[0, -1]) for letter in LETTERS[:options]]
        return logits[names].float().log_softmax(dim=0).cpu().numpy()


def held_out_exam(
    examiner: Examiner, images: np.ndarray, known: Sequence[Known], seed: int, asked: int = 200
) -> dict[str, float]:
    """Figures on pictures that were not trained on.

    `kind_accuracy`: percent of pictures whose own kind's head sentence fits best, of all kinds.
    `gain_nats`: mean of log p(caption | image) - log p(caption) of true captions.
    `choice_accuracy`: percent right with up to five options, and `choice_chance` by guessing;
    `letter_spread`: difference between the most and the least given letter of four, in percent,
    over shuffled options.
    """
    dice = generator(seed, "exam")
    rows = dice.permutation(len(known))[:asked]
    kinds = sorted({k.kind for k in known})
    heads = [kind_caption(generator(kind), kind, {}) for kind in kinds]
    fit = examiner.fits(images[rows], heads)
    right = [
        kinds[int(best)] == known[row].kind for best, row in zip(fit.argmax(1), rows, strict=True)
    ]
    gains, hits, chances = [], [], []
    for row in rows:
        text = kind_caption(dice, known[row].kind, known[row].measured)
        gains.append(float(examiner.fits(images[row : row + 1], [text])[0, 0]))
        others = [known[int(i)] for i in dice.integers(0, len(known), 12)]
        ask, answer = choice(dice, known[row], others, 5)
        count = ask.count("\n")
        found = examiner.letters(images[row], ask, count)
        hits.append(LETTERS[int(found.argmax())] == answer)
        chances.append(1 / count)
    given = np.zeros(4)
    for row in rows[: asked // 2]:
        wrong = [h for h, kind in zip(heads, kinds, strict=True) if kind != known[row].kind]
        options = [wrong[int(i)] for i in dice.permutation(len(wrong))[:4]]
        given[int(examiner.letters(images[row], question(options), 4).argmax())] += 1
    return {
        "kind_accuracy": 100 * float(np.mean(right)),
        "kind_chance": 100 / len(kinds),
        "gain_nats": float(np.mean(gains)),
        "choice_accuracy": 100 * float(np.mean(hits)),
        "choice_chance": 100 * float(np.mean(chances)),
        "letter_spread": 100 * float((given.max() - given.min()) / given.sum()),
    }


def domain_exam(
    examiner: Examiner, domains: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """How well domains are told apart by the descriptions that the model itself writes of them.

    Args:
        examiner: asks the model.
        domains: per domain a few training images, and test images.

    Returns:
        Per domain its `description`, the percent of test images that its description fits best
        (`accuracy`), and how often each domain was chosen (`chosen`).
    """
    texts = {name: examiner.describe(few) for name, (few, _) in domains.items()}
    names = list(texts)
    found: dict[str, dict[str, Any]] = {}
    for place, (name, (_, test)) in enumerate(domains.items()):
        best = fits(list(texts.values()), partial(examiner.fits, test)).argmax(axis=1)
        counts = np.bincount(best, minlength=len(names))
        found[name] = {
            "description": texts[name],
            "accuracy": 100 * float(counts[place] / len(test)),
            "chosen": dict(zip(names, counts.tolist(), strict=True)),
        }
    return found


def held_out(settings: PretrainSettings) -> tuple[np.ndarray, list[Known]]:
    """Pictures that a training by these settings did not see, (B, S, S, 3), and what is known."""
    images, known = [], []
    for _, make in sources(settings.pictures, settings.seed):
        found = make(settings.pictures.held_out)
        images += [p.pixels for p in found]
        known += [Known(p.kind, p.names, measure(p.pixels)) for p in found]
    return np.stack(images), known


def read_domains(
    root: str | None, seed: int, few: int, tests: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per domain `few` training and `tests` test images, drawn by seed.

    Args:
        root: a folder of parquet domains; None = the embedded stream.
        seed: of the draw, and of the embedded stream's images.
        few: training images that a description is made from.
        tests: test images.

    Raises:
        UserError: there are no such domains.
    """
    reader = "rendered" if root is None else "parquet"
    found = open_stream(StreamSettings(reader=reader, root=root), seed)
    return {
        domain.name: (
            _images(domain.splits["train"], few, seed),
            _images(domain.splits["test"], tests, seed),
        )
        for domain in found
    }


def _images(split: Split, count: int, seed: int) -> np.ndarray:
    wanted = set(generator(seed, split.name).permutation(split.count)[:count].tolist())
    images = []
    for chunk in split.chunks:
        for row in chunk.rows():
            if row.index in wanted and row.image is not None:
                pixels = (
                    decode(row.image, MAX_PIXELS) if isinstance(row.image, bytes) else row.image
                )
                images.append(fit(pixels, SIZE))
    return np.stack(images)
