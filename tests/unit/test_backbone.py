"""Our forward is open_clip's, bit-stable without groups, and other architectures are refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.model import kernels
from archipelago.pipeline.model.backbone import SUPPORTED, Backbone, from_open_clip, load_backbone
from archipelago.pipeline.model.experts import ExpertGroup, expert_shapes
from archipelago.pipeline.model.growing import GrowingModel
from archipelago.pipeline.model.kernels import (
    BACKENDS,
    BF16_UNITS,
    Kernels,
    Switch,
    choose,
    multiplies_bf16,
)
from archipelago.pipeline.model.mix import TaskMix
from archipelago.pipeline.settings import BackboneSettings, ExpertSettings
from tests.unit.tiny_clip import (
    CONTEXT,
    VOCABULARY,
    images,
    open_clip_model,
    randomise,
    save_local,
    tiny_backbone,
    words,
)

CAPTIONS = ["a cat", "a photo of a very small dog", "", "1 2 3 4 5 6 7 8 9"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "quick-gelu": {"quick_gelu": True},
    "custom-text": {"kind": open_clip.CustomTextCLIP},
    "layer-scale": {"image": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.2}},
    "no-ln-pre": {"image": {"no_ln_pre": True}},
    "eos-pool": {"text": {"pool_type": "eos", "eos_id": VOCABULARY - 1}},
    "linear-projection": {"kind": open_clip.CustomTextCLIP, "text": {"proj_bias": True}},
    "no-projection": {"text": {"proj_type": "none"}},
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_the_explicit_forward_is_open_clips(options: dict[str, Any]) -> None:
    model = open_clip_model(**options)
    ours = from_open_clip(model, words, "tiny")
    pixels = ours.normalise(images(5))
    with torch.no_grad():
        theirs_image = model.encode_image(pixels, normalize=True)
        theirs_text = model.encode_text(words(CAPTIONS), normalize=True)
        assert (ours.encode_image(pixels) - theirs_image).abs().max() < 1e-5
        assert (ours.encode_text(ours.tokenize(CAPTIONS)) - theirs_text).abs().max() < 1e-5
    assert ours.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert theirs_text.std(dim=0).mean() > 1e-3, "captions must differ for this to mean anything"


def test_quick_gelu_and_gelu_are_told_apart() -> None:
    pixels = tiny_backbone().normalise(images(2))
    with torch.no_grad():
        plain = tiny_backbone().encode_image(pixels)
        quick = tiny_backbone(quick_gelu=True).encode_image(pixels)
    assert (plain - quick).abs().max() > 1e-4


def test_normalise_is_clips(backbone: Backbone) -> None:
    pixels = images(2)
    expected = (pixels.float() / 255 - torch.tensor(open_clip.OPENAI_DATASET_MEAN)) / torch.tensor(
        open_clip.OPENAI_DATASET_STD
    )
    assert torch.allclose(backbone.normalise(pixels.numpy()), expected.permute(0, 3, 1, 2))


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
@pytest.mark.parametrize("first", [0, "half"])
@torch.no_grad()
def test_an_untrained_group_changes_no_bit(backbone: Backbone, kind: str, first: Any) -> None:
    shapes = expert_shapes(backbone, ExpertSettings(kind=kind, first_block=first))
    model = GrowingModel(backbone, shapes)
    weights = {name: torch.ones(1, shape.blocks) for name, shape in shapes.items()}
    model.add("new", ExpertGroup(shapes, seed=3), TaskMix(("new",), weights))
    trained = randomise(ExpertGroup(shapes), 4)
    model.add("old", trained, TaskMix(("old",), weights))
    pixels = backbone.normalise(images(4))
    plain = backbone.encode_image(pixels)
    classes = (["cat", "dog"], ["a photo of a {}.", "{} drawn"])
    assert torch.equal(model.encode_image(pixels, model.mix(["new"])), plain)
    assert torch.equal(model.encode_image(pixels, model.mix(["new", None, "new", "new"])), plain)
    assert torch.equal(model.encode_image(pixels, model.mix([None] * 4)), plain)
    assert torch.equal(model.encode_classes(*classes, "new"), backbone.encode_classes(*classes))
    assert not torch.equal(model.encode_image(pixels, model.mix(["old"])), plain)
    assert not torch.equal(model.encode_classes(*classes, "old"), backbone.encode_classes(*classes))


@pytest.mark.parametrize("pool", ["plain", "eos-pool"])
@torch.no_grad()
def test_trimming_captions_is_exact(pool: str) -> None:
    backbone = tiny_backbone(**KINDS[pool])
    tokens = words(CAPTIONS[:3])
    short = backbone.tokenize(CAPTIONS[:3])
    assert short.shape == (3, 9) and tokens.shape == (3, CONTEXT)
    assert torch.equal(backbone.text.positions(short), torch.tensor([3, 8, 1]))
    assert torch.allclose(backbone.encode_text(short), backbone.encode_text(tokens), atol=1e-6)
    # what follows the end of text does not matter, what precedes it does
    noise = tokens.clone()
    noise[0, 4:] = 7
    assert torch.equal(backbone.encode_text(noise)[0], backbone.encode_text(tokens)[0])
    noise[0, 2] = 7
    assert not torch.equal(backbone.encode_text(noise)[0], backbone.encode_text(tokens)[0])


@torch.no_grad()
def test_class_features_are_means_over_templates(backbone: Backbone) -> None:
    templates = ["a photo of a {}.", "a {} drawn"]
    got = backbone.encode_classes(["cat", "dog", "red bus"], templates)
    for row, name in enumerate(["cat", "dog", "red bus"]):
        single = [backbone.encode_text(words([t.format(name)]))[0] for t in templates]
        assert torch.allclose(got[row], F.normalize(sum(single) / 2, dim=0), atol=1e-6)
    assert torch.allclose(got.norm(dim=1), torch.ones(3))


@torch.no_grad()
def test_a_forward_can_be_cut_at_any_block(backbone: Backbone) -> None:
    tower, seen = backbone.image, []
    x = tower.embed(backbone.normalise(images(3)))
    whole = tower.run(x, 0, tower.depth, record=lambda n, y: seen.append((n, y)))
    for cut in range(tower.depth + 1):
        assert torch.equal(tower.run(tower.run(x, 0, cut), cut, tower.depth), whole)
    assert [n for n, _ in seen] == [1, 2, 3, 4] and torch.equal(seen[1][1], tower.run(x, 0, 2))
    for start in range(tower.depth):
        pooled = tower.pooled(tower.run(x, 0, start), start)
        assert torch.allclose(pooled, whole[:, 0], atol=1e-5), "only the last block's CLS is read"


def test_nothing_in_the_backbone_trains(backbone: Backbone) -> None:
    assert not any(p.requires_grad for p in backbone.parameters())
    assert backbone.parameter_count() == sum(p.numel() for p in open_clip_model().parameters())


def test_the_digest_sees_every_weight(backbone: Backbone) -> None:
    other = tiny_backbone()
    assert other.digest() == backbone.digest()
    other.text.text.ln_final.bias[3] += 1e-3
    assert other.digest() != backbone.digest()
    assert tiny_backbone(init_logit_scale=3.0).digest() != backbone.digest()


COCA = {
    "embed_dim": 32,
    "multimodal_cfg": {
        "width": 32,
        "heads": 2,
        "layers": 1,
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
    },
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    },
    "vision_cfg": {
        "image_size": 32,
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
}
SIGLIP_TEXT = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
OTHERS: dict[str, Any] = {
    "resnet": lambda: open_clip_model(image={"layers": (1, 1, 1, 1), "width": 16}),
    "siglip": lambda: open_clip_model(
        open_clip.CustomTextCLIP, text=SIGLIP_TEXT, init_logit_bias=-10
    ),
    "logit-bias": lambda: open_clip_model(init_logit_bias=-10),
    "coca": lambda: open_clip.CoCa(**COCA),
    "coca-text": lambda: open_clip_model(open_clip.CustomTextCLIP, text={"embed_cls": True}),
    "bidirectional-text": lambda: open_clip_model(
        open_clip.CustomTextCLIP, text={"no_causal_mask": True}
    ),
    "last-token": lambda: open_clip_model(text={"pool_type": "last"}),
    "attention-pool": lambda: open_clip_model(
        image={"attentional_pool": True, "attn_pooler_heads": 2}
    ),
    "average-pool": lambda: open_clip_model(image={"pool_type": "avg"}),
    "ln-after-pool": lambda: open_clip_model(image={"final_ln_after_pool": True}),
    "custom-blocks": lambda: open_clip_model(image={"qk_norm": True}),
    "custom-text-blocks": lambda: open_clip_model(text={"scale_fc": True}),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_architectures_are_refused(make: Any) -> None:
    model: nn.Module = make()
    with pytest.raises(UserError, match="'odd' is not supported") as caught:
        from_open_clip(model, words, "odd")
    assert SUPPORTED in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "pretrained", "complaint"),
    [
        ("ViT-Z-99", None, "not known"),
        ("local-dir:/nowhere", None, "no folder"),
        ("ViT-B-16", None, "backbone.pretrained: name the weights"),
        ("RN50", "random", "is not supported; supported"),
        ("roberta-ViT-B-32", "random", "is not supported; supported"),
        ("vit_medium_patch16_gap_256", "random", "is not supported; supported"),
    ],
)
def test_names_that_cannot_be_loaded(name: str, pretrained: str | None, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        load_backbone(BackboneSettings(name=name, pretrained=pretrained))
    assert "\n" not in str(caught.value)


def test_what_only_other_models_need_is_not_imported() -> None:
    """It would slow the start of each process; whoever needs it still gets it."""
    script = (
        "import sys; import archipelago.pipeline.model.backbone\n"
        "from archipelago.pipeline.model.openclip import OPTIONAL\n"
        "assert not sys.modules.keys() & set(OPTIONAL); import transformers"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_local_dir_loads_what_was_saved(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    model = save_local(folder)
    backbone = load_backbone(BackboneSettings(name=f"local-dir:{folder}"))
    with torch.no_grad():
        pixels, tokens = backbone.normalise(images(2)), backbone.tokenizer(["a cat", "two dogs"])
        theirs = model.encode_image(pixels, normalize=True)
        assert torch.allclose(backbone.encode_image(pixels), theirs, atol=1e-5)
        theirs = model.encode_text(tokens, normalize=True)
        assert torch.allclose(backbone.encode_text(backbone.text.trim(tokens)), theirs, atol=1e-5)
    (folder / "open_clip_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot load"):
        load_backbone(BackboneSettings(name=f"local-dir:{folder}"))


def test_kernels_follow_from_what_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """No race: equal machines choose alike however busy they are, and a choice is not undone."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    for tiles, vectors in ((True, True), (False, True), (False, False)):
        for name, has in zip(BF16_UNITS, (tiles, vectors), strict=True):
            monkeypatch.setattr(torch.cpu, name, lambda found=has: found)
        expected = ("math", "bf16") if vectors else ("flash", "fp32")
        assert multiplies_bf16("cpu") is vectors
        assert choose("auto", "auto", "cpu") == Kernels(*expected, "cpu")
        assert choose("efficient", "auto", "cpu") == Kernels("efficient", expected[1], "cpu")
        assert choose("auto", "fp32", "cpu") == Kernels(expected[0], "fp32", "cpu")
    for name in BF16_UNITS:
        monkeypatch.delattr(torch.cpu, name)
    assert choose("auto", "auto", "cpu") == Kernels("flash", "fp32", "cpu")
    for bf16 in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda found=bf16: found)
        assert choose("auto", "auto", "cuda:1") == Kernels(
            "flash", "bf16" if bf16 else "fp32", "cuda:1"
        )


@pytest.mark.parametrize(
    ("name", "avx512", "exact", "expected"),
    [
        ("AMD EPYC", True, True, "onednn"),
        ("AMD EPYC", True, False, "torch"),
        ("AMD EPYC", False, True, "torch"),
        ("Intel(R) Xeon(R)", True, True, "torch"),
    ],
)
def test_onednn_multiplies_where_mkl_keeps_to_avx2(
    monkeypatch: pytest.MonkeyPatch, name: str, avx512: bool, exact: bool, expected: str
) -> None:
    found = {"cpu_name": name, "avx512_f": avx512}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(kernels, "onednn_multiplies_exactly", lambda: exact)
    assert choose("auto", "auto", "cpu").products == expected
    assert choose("auto", "auto", "cuda").products == "torch"


@pytest.mark.parametrize("exact", [True, False])
@torch.no_grad()
def test_onednn_is_asked_only_where_it_is_exact(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    """A run that began on such a processor may go on on one whose oneDNN rounds."""
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(setting, "fp32_precision"):
        pytest.skip("torch before 2.9 has no setting for oneDNN's products")
    before = setting.fp32_precision
    if exact and not kernels.onednn_multiplies_exactly():
        pytest.skip("oneDNN rounds on this processor")
    monkeypatch.setattr(kernels, "onednn_multiplies_exactly", lambda: exact)
    pixels = backbone.normalise(images(3))
    with Kernels("math").exact():
        usual = backbone.encode_image(pixels)
    with Kernels("math", products="onednn").exact():
        assert (setting.fp32_precision == "bf16") is exact
        found = backbone.encode_image(pixels)
    assert torch.allclose(usual, found, atol=1e-6)
    assert setting.fp32_precision == before


def test_a_switch_is_put_back_by_the_last_who_lets_go() -> None:
    now = ["off"]
    switch = Switch(lambda: now[0], lambda value: now.__setitem__(0, value))
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with switch.held("on"):
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=hold)
    with switch.held("on"):
        other.start()
        assert inside.wait(10)
    assert now == ["on"], "another thread is within"
    leave.set()
    other.join()
    assert now == ["off"]


def test_choosing_kernels_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("timed")

    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    monkeypatch.setattr("time.perf_counter", refuse)
    assert choose("auto", "auto", "cpu") == choose("auto", "auto", "cpu")


@pytest.mark.parametrize("attention", BACKENDS)
@torch.no_grad()
def test_every_kernel_computes_the_same(backbone: Backbone, attention: str) -> None:
    pixels = backbone.normalise(images(3))
    kernels = Kernels(attention, "bf16")
    with kernels.exact():
        exact = backbone.encode_image(pixels)
    assert (exact - backbone.encode_image(pixels)).abs().max() < 1e-5
    with kernels.training():
        half = backbone.encode_image(pixels)
    assert 1e-5 < (half - exact).abs().max() < 0.1, "precision is for training alone"
