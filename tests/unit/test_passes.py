"""What a pass of frozen CLIP gives, of images as they are or averaged with their mirror images."""

from __future__ import annotations

import numpy as np
import torch

from archipelago.pipeline.learned.passes import FeaturePass
from archipelago.pipeline.methods import build_method
from tests.unit.tiny_clip import images, settings, tiny_backbone


def test_mirrored_features_are_those_of_image_and_mirror_image_alike() -> None:
    method = build_method(settings(), None, tiny_backbone())
    plain = FeaturePass(method, method.settings.identifier)
    chosen = method.settings.identifier.model_copy(update={"mirror": True})
    both = FeaturePass(method, chosen)
    seen = images(3).numpy()
    mirrored = np.ascontiguousarray(seen[:, :, ::-1])
    x_BLD, raw, frozen = both.raw(seen)
    _, other_raw, other_frozen = both.raw(mirrored)
    assert np.allclose(raw, other_raw, atol=1e-5)
    assert np.allclose(frozen, other_frozen, atol=1e-6)
    assert np.allclose(np.linalg.norm(frozen, axis=1), 1.0, atol=1e-6)
    usual, raw_as_is, _ = plain.raw(seen)
    assert torch.equal(x_BLD, usual), "groups see the image as it is"
    assert not np.allclose(raw, raw_as_is, atol=1e-3)
    assert np.allclose(raw, (raw_as_is + plain.raw(mirrored)[1]) / 2.0, atol=1e-5)
