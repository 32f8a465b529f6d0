"""What a model of transformers' format needs before its weights: chats, tokens, letters, its name.

Shared by the drivers that load a model themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifier_settings import MultimodalSettings

WEIGHTS = Path(__file__).resolve().parent / "weights"
EMBEDDED = {"mllm-tiny": WEIGHTS / "mllm-tiny"}
OWN = (
    "<answer>"  # a token of mllm-tiny and its like: they were taught these questions and no others
)
READ_IN_FULL = 64 * 2**20  # bytes of a model's file that are hashed; of larger ones the ends only
ENDS = 2**20


class Processor:
    """Processor and tokenizer of a model.

    Attributes:
        where: directory or id on the hub.
        hf: transformers' processor.
        tokenizer: its tokenizer, padding on the left.
        taught: whether the model was taught our questions, without words on the form of an answer.
        templated: whether it has a chat template.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """

    def __init__(self, settings: MultimodalSettings) -> None:
        from transformers import AutoProcessor  # seconds
        from transformers.utils import logging as noise

        noise.disable_progress_bar()
        self.where = str(EMBEDDED.get(settings.model, settings.model))
        self.short = settings.model.rstrip("/").rsplit("/", 1)[-1]
        with loading(settings):
            self.hf = AutoProcessor.from_pretrained(self.where)
        self.tokenizer: Any = self.hf.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.taught = OWN in self.tokenizer.get_vocab()
        self.templated = bool(
            getattr(self.hf, "chat_template", None) or self.tokenizer.chat_template
        )

    def chats(
        self, prompts: Sequence[str], pictures: Sequence[Image.Image] | None
    ) -> list[list[dict[str, Any]]]:
        """One conversation a prompt: its image, if there are any, then the text."""
        found = []
        for row, prompt in enumerate(prompts):
            content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
            if pictures is not None:
                content.insert(0, {"type": "image", "image": pictures[row]})
            found.append([{"role": "user", "content": content}])
        return found

    def plain(self, prompts: Sequence[str], pictured: bool) -> list[str]:
        """The same for a model without a chat template."""
        mark = f"{self.hf.image_token}\n" if pictured else ""
        return [f"{mark}{prompt}\n" for prompt in prompts]

    def ids(self, text: str) -> list[int]:
        """Tokens of an answer.

        Raises:
            UserError: there are none.
        """
        found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not found:
            raise UserError(f"identifier.descriptions: '{text}' is empty for this model")
        return list(found)

    def letter_ids(self, letter: str) -> list[int]:
        """Tokens that are this letter, with or without a space before it.

        Raises:
            UserError: there are none.
        """
        found = set()
        for text in (letter, f" {letter}"):
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if ids and self.tokenizer.decode(ids[-1:]).strip() == letter:
                found.add(ids[-1])
        if not found:
            raise UserError(
                f"identifier.scoring=choice: the tokenizer of {self.short} has no token for the"
                f" letter {letter}; use identifier.scoring=likelihood"
            )
        return sorted(found)


@contextmanager
def loading(settings: MultimodalSettings) -> Iterator[None]:
    """Whatever a library says about a model that it cannot load, in one line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"identifier.model={settings.model}: cannot be loaded ({reason}); give mllm-tiny, a"
            " directory or the id of an image-text-to-text model on the hub"
        ) from error


def folder_digest(folder: Path) -> str:
    """12 hex digits of a model's files; large ones are read at both ends only."""
    total = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if not file.is_file():
            continue
        size = file.stat().st_size
        total.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            if size <= READ_IN_FULL:
                total.update(stream.read())
            else:
                total.update(stream.read(ENDS))
                stream.seek(-ENDS, 2)
                total.update(stream.read())
    return total.hexdigest()[:12]
