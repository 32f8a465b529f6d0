"""One pass of frozen CLIP: trunk, compact features and image features, from the same activations.

Shapes: B images, L tokens, D width, S raw signature features, K compact features, F embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifier_settings import IdentifierSettings
from archipelago.pipeline.identifiers.basis import depths
from archipelago.pipeline.identifiers.features import DepthRecorder
from archipelago.pipeline.methods import Method


class Passed(NamedTuple):
    """What a pass leaves of B images.

    Attributes:
        x_BLD: trunk activations, where functions with weights begin.
        compact: (B, K) float32.
        frozen: (B, F) normalised features of frozen CLIP, float32.
    """

    x_BLD: Tensor
    compact: np.ndarray
    frozen: np.ndarray


class FeaturePass:
    """Frozen CLIP up to its features, with what the signature reads on the way.

    Args:
        method: says where the trunk ends.
        settings: of the identifier; `depths` and `mirror` count.
    """

    def __init__(self, method: Method, settings: IdentifierSettings) -> None:
        self.method, self._mirror = method, settings.mirror
        tower = method.backbone.image
        self._depths = depths(tower.depth, settings.depths, method.first_blocks[0])
        self._with_final = settings.depths != "trunk"

    @torch.no_grad()
    def raw(self, images_BSSC: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Trunk activations, raw signature features (B, S) and CLIP's features (B, F)."""
        backbone = self.method.backbone
        with backbone.kernels.exact():
            x_BLD, raw, frozen = self.tensors(backbone.normalise(images_BSSC))
        return x_BLD, raw.cpu().numpy(), frozen.cpu().numpy()

    def tensors(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of normalised pixels, all as tensors.

        With `identifier.mirror` features are means of those of an image and of its mirror image;
        the trunk's activations are of the image.
        """
        x_BLD, raw_BS, frozen_BF = self._once(image_BCHW)
        if self._mirror:
            _, other_BS, other_BF = self._once(image_BCHW.flip(-1))
            raw_BS, frozen_BF = (raw_BS + other_BS) / 2.0, F.normalize(frozen_BF + other_BF, dim=-1)
        return x_BLD, raw_BS, frozen_BF

    def _once(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        record = DepthRecorder(self._depths)
        x_BLD = self.method.trunk(image_BCHW, record)
        frozen_BF = self.method.frozen_features(x_BLD, record)
        return x_BLD, record.features(frozen_BF if self._with_final else None), frozen_BF

    def __call__(self, images_BSSC: np.ndarray, basis: Basis) -> Passed:
        """Everything that a view needs of uint8 images.

        Raises:
            UserError: the basis belongs to another backbone or other depths.
        """
        x_BLD, raw, frozen = self.raw(images_BSSC)
        if raw.shape[1] != len(basis.mean):
            raise UserError(
                f"backbone.basis: it reads {len(basis.mean)} features, this backbone with these"
                f" identifier.depths gives {raw.shape[1]}; make one with jobs/basis.py"
            )
        return Passed(x_BLD, basis.compact(raw), frozen)
