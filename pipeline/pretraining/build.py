"""The small vision-language model, put together from stock transformers classes.

A LLaVA-like `AyaVisionForConditionalGeneration`: the image tower of a packaged CLIP under
transformers' names, a projector that folds 2 x 2 patches into one token, a small Llama. What is
written by `save` is loaded anywhere by `AutoModelForImageTextToText` and `AutoProcessor`.

Shapes: B images, L patches and CLS, D width of the tower.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    CLIPVisionConfig,
    GotOcr2ImageProcessor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from archipelago.pipeline.model.backbone import EMBEDDED
from archipelago.pipeline.pretraining.settings import ModelSettings

PAD, BEGIN, END = "<pad>", "<s>", "</s>"
USER, ANSWER = "<user>", "<answer>"
IMAGE, VIEW, PATCH, IMAGE_END = "<image>", "<view>", "<patch>", "</image>"
SPECIAL = (PAD, BEGIN, END, USER, ANSWER, IMAGE, VIEW, PATCH, IMAGE_END, "<unk>")
FOLD = 2  # patches a side that become one token
# One turn of the user, then the answer; an image stands where the user put it.
CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ '"
    + ANSWER
    + "' }}{% else %}{{ '"
    + USER
    + "' }}{% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '" + IMAGE + "' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '" + ANSWER + "' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `size` entries; letters A-I are entries of their own."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFKC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel()]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token="<unk>",
        additional_special_tokens=[USER, ANSWER, IMAGE, VIEW, PATCH, IMAGE_END],
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def tower_weights(clip: str = "clip-tiny", blocks: int | None = None) -> dict[str, Tensor]:
    """The image tower of a packaged CLIP under the names of `CLIPVisionModel`, fp32.

    Args:
        clip: a backbone inside the package.
        blocks: only the first of its blocks; None = all.
    """
    source = load_file(EMBEDDED[clip] / "open_clip_model.safetensors")
    visual = {k.removeprefix("visual."): v.float() for k, v in source.items() if k[:7] == "visual."}
    found = {
        "embeddings.class_embedding": visual["class_embedding"],
        "embeddings.patch_embedding.weight": visual["conv1.weight"],
        "embeddings.position_embedding.weight": visual["positional_embedding"],
    }
    for ours, theirs in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        for kind in ("weight", "bias"):
            found[f"{ours}.{kind}"] = visual[f"{theirs}.{kind}"]
    found |= dict(_blocks(visual, blocks))
    return found


def _blocks(visual: dict[str, Tensor], limit: int | None) -> Iterator[tuple[str, Tensor]]:
    names = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    count = 1 + max(int(k.split(".")[2]) for k in visual if k.startswith("transformer.resblocks."))
    for block in range(count if limit is None else min(limit, count)):
        here, there = f"transformer.resblocks.{block}.", f"encoder.layers.{block}."
        for kind in ("weight", "bias"):
            for ours, theirs in names.items():
                yield f"{there}{theirs}.{kind}", visual[f"{here}{ours}.{kind}"]
            joined = visual[f"{here}attn.in_proj_{kind}"].chunk(3)
            for name, part in zip("qkv", joined, strict=True):
                yield f"{there}self_attn.{name}_proj.{kind}", part.clone()


def build_model(settings: ModelSettings, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A model with the packaged image tower, everything else freshly initialised."""
    weights = tower_weights(settings.tower, settings.tower_blocks)
    width = weights["embeddings.class_embedding"].shape[0]
    patch = weights["embeddings.patch_embedding.weight"].shape[-1]
    side = int((weights["embeddings.position_embedding.weight"].shape[0] - 1) ** 0.5)
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
        num_hidden_layers=settings.tower_blocks,
        image_size=side * patch,
        patch_size=patch,
        hidden_act="gelu",
        projection_dim=width,
    )
    ids: Any = tokenizer.convert_tokens_to_ids
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        intermediate_size=settings.inner,
        num_attention_heads=settings.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=ids(BEGIN),
        eos_token_id=ids(END),
        pad_token_id=ids(PAD),
    )
    config = AyaVisionConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        downsample_factor=FOLD,
        image_token_index=ids(PATCH),
        tie_word_embeddings=True,
    )
    config.alignment_intermediate_size = 2 * settings.width
    config.bos_token_id, config.eos_token_id, config.pad_token_id = ids(BEGIN), ids(END), ids(PAD)
    model: Any = AyaVisionForConditionalGeneration(config)
    model.generation_config.update(
        bos_token_id=ids(BEGIN), eos_token_id=ids(END), pad_token_id=ids(PAD), do_sample=False
    )
    model.model.vision_tower.load_state_dict(weights, strict=True)
    model.model.vision_tower.requires_grad_(False)
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast, model: Any) -> AyaVisionProcessor:
    """The processor that belongs to a model: one view an image, CLIP's mean and deviation."""
    vision = model.config.vision_config
    size = vision.image_size
    pictures = GotOcr2ImageProcessor(
        size={"height": size, "width": size}, crop_to_patches=False, min_patches=1, max_patches=1
    )
    return AyaVisionProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        img_size=size,
        image_token=IMAGE,
        downsample_factor=FOLD,
        start_of_img_token=IMAGE,
        end_of_img_token=IMAGE_END,
        img_patch_token=PATCH,
        tile_token="<tile>",
        tile_global_token=VIEW,
        chat_template=CHAT,
    )


def image_prefix(model: Any) -> str:
    """What the processor puts in place of one image, as text."""
    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size // FOLD) ** 2
    return IMAGE + VIEW + PATCH * tokens + IMAGE_END


def save(folder: Path, model: Any, processor: AyaVisionProcessor) -> None:
    """Write model and processor; weights in fp16, or they would be twice as large."""
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    model.float()


def load(folder: Path | str) -> tuple[Any, Any]:
    """A saved model in fp32 and its processor, without the network.

    Raises:
        OSError: there is no model in the folder.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    )
    return model, AutoProcessor.from_pretrained(folder, local_files_only=True)
