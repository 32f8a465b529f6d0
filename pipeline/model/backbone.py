"""The frozen CLIP: any open_clip ViT with a causal text transformer.

Usage:
    backbone = load_backbone(BackboneSettings(name="clip-tiny"))
    features = backbone.encode_image(images)      # (B, F), normalised
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.model.folder import check_folder
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.model.openclip import forget_words, open_clip
from archipelago.pipeline.model.towers import Delta, ImageTower, TextTower
from archipelago.pipeline.settings import BackboneSettings

PROMPTS = 1024  # captions that are encoded at once
EMBEDDED = {"clip-tiny": Path(__file__).parent / "weights" / "clip-tiny"}
SUPPORTED = (
    "supported: open_clip models whose image tower is a ViT with a CLS token and whose text tower"
    " is a causal transformer pooled at the end of text (clip-tiny, ViT-B-32, ViT-B-16, ViT-L-14,"
    " ViT-H-14, local-dir:PATH and hf-hub:NAME of the same kind)"
)


class Backbone(nn.Module):
    """Frozen CLIP as two towers; nothing in it ever changes.

    Shapes: B batch, L tokens, D width, C classes, P templates, F embedding.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, image: ImageTower, text: TextTower, scale: float, **kind: Any
    ) -> None:
        super().__init__()
        self.name = name
        self.image = image
        self.text = text
        self.logit_scale = scale
        self.tokenizer = kind["tokenizer"]
        self.kernels: Kernels = kind.get("kernels") or Kernels()
        self.register_buffer("mean", torch.tensor(kind["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(kind["std"]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.image.image_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    def parameter_count(self) -> int:
        """Parameters of both towers."""
        return sum(p.numel() for p in self.parameters())

    def digest(self) -> str:
        """sha256 over all weights by name, the identity of this backbone."""
        digest = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        digest.update(repr(float(self.logit_scale)).encode())
        return digest.hexdigest()

    def normalise(self, images_BHWC: np.ndarray | Tensor) -> Tensor:
        """uint8 (B, H, W, 3) to normalised float (B, 3, H, W) on the device."""
        pixels = torch.as_tensor(images_BHWC).to(self.device)
        return (pixels.permute(0, 3, 1, 2).float() / 255.0 - self.mean) / self.std

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Captions to ids (B, L), cut after the longest one."""
        tokens_BL = self.tokenizer(list(texts))
        forget_words(self.tokenizer)
        return self.text.trim(tokens_BL.to(self.device))

    def encode_image(self, image_BCHW: Tensor, delta: Delta | None = None) -> Tensor:
        """Normalised image features (B, F); with `delta`, those of a group."""
        x_BD = self.image.pooled(self.image.embed(image_BCHW), 0, delta)
        return F.normalize(self.image.finish(x_BD), dim=-1)

    def encode_text(self, tokens_BL: Tensor, delta: Delta | None = None) -> Tensor:
        """Normalised caption features (B, F); with `delta`, those of a group."""
        position_B = self.text.positions(tokens_BL)
        x_BD = self.text.pooled(self.text.embed(tokens_BL), 0, delta, position_B)
        return F.normalize(self.text.finish(x_BD), dim=-1)

    def encode_classes(
        self, classes: Sequence[str], templates: Sequence[str], delta: Delta | None = None
    ) -> Tensor:
        """Class features (C, F): the normalised mean of a class's normalised template features."""
        return class_means(
            classes, templates, lambda prompts: self.encode_text(self.tokenize(prompts), delta)
        )


def class_means(
    classes: Sequence[str], templates: Sequence[str], encode: Callable[[list[str]], Tensor]
) -> Tensor:
    """Class features (C, F) from prompts, some whole classes at a time.

    Args:
        classes: names.
        templates: with a place for the name.
        encode: normalised features (P, F) of prompts.
    """
    at_once, parts = max(1, PROMPTS // max(1, len(templates))), []
    for start in range(0, len(classes), at_once):
        names = classes[start : start + at_once]
        features = encode([template.format(name) for name in names for template in templates])
        parts.append(features.view(len(names), len(templates), -1).mean(dim=1))
    return F.normalize(torch.cat(parts), dim=-1)


def load_backbone(
    settings: BackboneSettings, device: str = "cpu", kernels: Kernels | None = None
) -> Backbone:
    """Load a backbone by name.

    Raises:
        UserError: unknown name, missing weights, or an architecture that is not supported.
    """
    name = settings.name
    source = f"local-dir:{EMBEDDED[name]}" if name in EMBEDDED else name
    if source.startswith("local-dir:") and not Path(source.removeprefix("local-dir:")).is_dir():
        raise UserError(
            f"backbone.name: {source} is no folder; give local-dir:PATH of a saved model"
        )
    if source.startswith("local-dir:"):
        check_folder(Path(source.removeprefix("local-dir:")))
    known = source.startswith(("local-dir:", "hf-hub:")) or source in open_clip.list_models()
    if not known:
        raise UserError(f"backbone.name: '{name}' is not known to open_clip; {SUPPORTED}")
    parts = open_clip.get_model_config(source) or {}
    if parts.get("text_cfg", {}).get("hf_model_name") or parts.get("vision_cfg", {}).get(
        "timm_model_name"
    ):
        raise UserError(f"backbone.name: '{name}' is not supported; {SUPPORTED}")
    extra: dict[str, Any] = {}
    if settings.image_size:
        extra["force_image_size"] = settings.image_size
    if settings.pretrained == "openai":
        extra["force_quick_gelu"] = True  # OpenAI's weights were trained with it
    pretrained = None if settings.pretrained in (None, "random") else settings.pretrained
    if not source.startswith(("local-dir:", "hf-hub:")) and settings.pretrained is None:
        raise UserError(
            f"backbone.pretrained: name the weights of {name}, one of "
            f"{open_clip.list_pretrained_tags_by_model(name)} (or 'random' for tests)"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = open_clip.create_model(source, pretrained=pretrained, device="cpu", **extra)
        tokenizer = open_clip.get_tokenizer(source)
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "pip install" in reason:  # parts of transformers or timm
            raise UserError(f"backbone.name: '{name}' is not supported; {SUPPORTED}") from error
        raise UserError(f"backbone.name: cannot load '{name}' ({reason})") from error
    _check_weights(model, name)
    return from_open_clip(model, tokenizer, name, kernels).to(device)


def _check_weights(model: torch.nn.Module, name: str) -> None:
    """Raises UserError for weights that are no numbers."""
    for key, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"backbone.name: '{name}': its weights are damaged, {key} is not finite; restore"
                " them"
            )


def from_open_clip(
    model: Any, tokenizer: Any, name: str, kernels: Kernels | None = None
) -> Backbone:
    """Wrap an open_clip model; UserError with the supported list if it is of another kind."""
    visual = model.visual
    text = getattr(model, "text", model)
    pool = getattr(text, "pool_type", None) or getattr(text, "text_pool_type", None)
    unsupported = (
        not isinstance(visual, open_clip.transformer.VisionTransformer)
        or getattr(visual, "attn_pool", None) is not None
        or getattr(visual, "pool_type", "tok") != "tok"
        or getattr(visual, "final_ln_after_pool", False)
        or not hasattr(text, "token_embedding")
        or getattr(text, "attn_mask", None) is None
        or getattr(text, "cls_emb", None) is not None
        or pool not in ("argmax", "eos")
        or getattr(model, "logit_bias", None) is not None
        or any(
            type(block) is not open_clip.transformer.ResidualAttentionBlock
            for block in [*visual.transformer.resblocks, *text.transformer.resblocks]
        )
    )
    if unsupported:
        raise UserError(
            f"backbone.name: the architecture of '{name}' is not supported; {SUPPORTED}"
        )
    eot_id = None
    if pool == "eos":
        eot_id = getattr(text, "eos_id", None) or getattr(text, "text_eos_id", None)
    return Backbone(
        name,
        ImageTower(visual),
        TextTower(text, eot_id),
        float(model.logit_scale.detach().float().exp()),
        tokenizer=tokenizer,
        kernels=kernels,
        mean=getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN,
        std=getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD,
    )
