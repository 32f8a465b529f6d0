"""The basis of a backbone: how signature features become compact ones (7.1).

Made once from a background of many unrelated images, stored with its hash, never recomputed:
eigenvectors differ between builds of a linear algebra library.

Shapes: B images, S signature features, K compact width, F embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from archipelago.pipeline.closedform.threads import one_thread
from archipelago.pipeline.closedform.triangle import packed, shrunk, unpacked
from archipelago.pipeline.errors import UserError

ENOUGH = 4  # images a dimension, from which a covariance is taken as it is
MIXED = 0.3  # share of the diagonal's mean in a covariance of fewer, and in `target`
FLOOR = 1e-3  # of the median scale: features that hardly vary are not blown up
DEPTHS = ("all", "trunk", "final")


@dataclass(frozen=True, eq=False)
class Basis:
    """`phi(x) = P' ((f(x) - m_0) / s_0)` and the background's moments. What is stored defines it.

    Attributes:
        mean: (S,) `m_0`.
        scale: (S,) `s_0`, floored.
        projection: (S, K) `P`, leading directions first.
        covariance: (K, K) `C_0`, the background's covariance of phi, ready for use.
        frozen_mean: (F,) `m_f`, mean of the background's normalised CLIP features.
        images: how many the background has.
        source: what they are, in words.
        depths: the signature it belongs to: all | trunk | final.
    """

    mean: np.ndarray
    scale: np.ndarray
    projection: np.ndarray
    covariance: np.ndarray
    frozen_mean: np.ndarray
    images: int
    source: str
    depths: str

    @property
    def width(self) -> int:
        """K."""
        return self.projection.shape[1]

    @one_thread
    def compact(self, features_BS: np.ndarray) -> np.ndarray:
        """Compact features (B, K), float32.

        Raises:
            UserError: the features are of another backbone or other depths.
        """
        if features_BS.shape[1] != len(self.mean):
            raise UserError(
                f"backbone.basis: the basis is for {len(self.mean)} signature features"
                f" (depths {self.depths}), not {features_BS.shape[1]}; make one for this backbone"
                " with jobs/basis.py"
            )
        standard = (features_BS.astype(np.float32) - self.mean) / self.scale
        return standard.astype(np.float32) @ self._single

    @cached_property
    def _single(self) -> np.ndarray:
        return self.projection.astype(np.float32)

    @cached_property
    def target(self) -> np.ndarray:
        """(K, K) `T_0 = 0.7 C_0 + 0.3 (tr C_0 / K) I`, what heads shrink towards."""
        return shrunk(self.covariance, MIXED)

    def narrowed(self, width: int) -> Basis:
        """The same with the `width` leading directions, or all where there are fewer."""
        if width >= self.width:
            return self
        return replace(
            self,
            projection=np.ascontiguousarray(self.projection[:, :width]),
            covariance=np.ascontiguousarray(self.covariance[:width, :width]),
        )

    def weakness(self) -> str | None:
        """One line on what too few images made weaker, or None."""
        if self.images >= ENOUGH * len(self.mean):
            return None
        missing = f"the background has {self.images} images ({self.source}), fewer than"
        if self.images >= ENOUGH * self.width:
            return f"{missing} {ENOUGH * len(self.mean)}: compact features are random directions"
        return (
            f"{missing} {ENOUGH * self.width}: compact features are random directions and their"
            f" covariance is mixed with {MIXED:.0%} of its diagonal's mean"
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Stored arrays by name."""
        about = {"images": self.images, "source": self.source, "depths": self.depths}
        return {
            "mean": self.mean,
            "scale": self.scale,
            "projection": self.projection,
            "covariance": packed(self.covariance).astype(np.float32),
            "frozen_mean": self.frozen_mean,
            "about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), dtype=np.uint8),
        }

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray]) -> Basis:
        """Inverse of `arrays`.

        Raises:
            UserError: an array is missing, or they do not fit together.
        """
        names = ("mean", "scale", "projection", "covariance", "frozen_mean", "about")
        missing = [name for name in names if name not in arrays]
        if missing:
            raise UserError(
                f"backbone.basis: this is no basis ({', '.join(missing)} missing); make one"
                " with jobs/basis.py"
            )
        about = json.loads(arrays["about"].tobytes())
        mean, scale, projection, triangle, frozen = (arrays[name] for name in names[:-1])
        basis = cls(mean, scale, projection, unpacked(triangle), frozen, **about)
        if not len(mean) == len(scale) == len(projection) or len(basis.covariance) != basis.width:
            raise UserError(
                "backbone.basis: the arrays of the basis do not fit together; make it anew"
                " with jobs/basis.py"
            )
        return basis

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over names, types, shapes and bytes of all stored arrays."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class BasisSums:
    """Moments of a background, batch by batch, in double precision."""

    def __init__(self) -> None:
        self.images = 0
        self.mean = np.zeros(0)
        self.scatter = np.zeros((0, 0))
        self.frozen = np.zeros(0)

    def add(self, features_BS: np.ndarray, frozen_BF: np.ndarray) -> None:
        """Take a batch of signature features and normalised CLIP features.

        Raises:
            ValueError: a feature is not finite.
        """
        features = features_BS.astype(np.float64)
        if len(features) == 0:
            return
        if not (np.isfinite(features).all() and np.isfinite(frozen_BF).all()):
            raise ValueError("features of the background are not finite")
        if self.images == 0:
            width = features.shape[1]
            self.mean, self.scatter = np.zeros(width), np.zeros((width, width))
            self.frozen = np.zeros(frozen_BF.shape[1])
        count, mean = len(features), features.mean(axis=0)
        centred, apart = features - mean, mean - self.mean
        total = self.images + count
        self.scatter += centred.T @ centred
        self.scatter += np.outer(apart, apart) * (self.images * count / total)
        self.mean = self.mean + apart * (count / total)
        self.frozen = self.frozen + frozen_BF.astype(np.float64).sum(axis=0)
        self.images = total

    def basis(self, width: int, source: str, depths: str, seed: int = 0) -> Basis:
        """The basis of what was added.

        Args:
            width: K; fewer where there are fewer features.
            source: what the images are, in words.
            depths: the signature's depths: all | trunk | final.
            seed: of the random directions where images are few.

        Raises:
            ValueError: fewer than two images, or unknown depths.
        """
        if self.images < 2:
            raise ValueError(f"a basis needs at least two images, not {self.images}")
        if depths not in DEPTHS:
            raise ValueError(f"depths {depths!r} are none of {', '.join(DEPTHS)}")
        covariance = self.scatter / self.images
        deviation = np.sqrt(np.diag(covariance))
        scale = np.maximum(deviation, max(FLOOR * float(np.median(deviation)), 1e-6))
        mean, scale = self.mean.astype(np.float32), scale.astype(np.float32)
        correlation = covariance / np.outer(scale.astype(np.float64), scale.astype(np.float64))
        width = min(width, len(mean))
        if self.images >= ENOUGH * len(mean):
            directions = np.linalg.eigh(correlation)[1][:, ::-1][:, :width]
        else:
            random = np.random.default_rng(seed).standard_normal((len(mean), width))
            directions = np.linalg.qr(random)[0]
        projection = _signed(directions).astype(np.float16)
        exact = projection.astype(np.float64)
        compact = exact.T @ correlation @ exact
        compact = 0.5 * (compact + compact.T)
        if np.trace(compact) <= 0.0:  # equal images say nothing
            compact = np.eye(width)
        if self.images < ENOUGH * width:
            compact = shrunk(compact, MIXED)
        compact = unpacked(packed(compact).astype(np.float32))
        frozen = (self.frozen / self.images).astype(np.float32)
        return Basis(mean, scale, projection, compact, frozen, self.images, source, depths)


def make_basis(
    features: Iterable[tuple[np.ndarray, np.ndarray]], width: int, source: str, depths: str
) -> Basis:
    """The basis of a background, from batches of signature features (B, S) and normalised CLIP
    features (B, F); see `BasisSums.basis`."""
    sums = BasisSums()
    for features_BS, frozen_BF in features:
        sums.add(features_BS, frozen_BF)
    return sums.basis(width, source, depths)


def _signed(directions_SK: np.ndarray) -> np.ndarray:
    """Each direction with its largest number positive: its sign is nobody's choice."""
    largest = np.abs(directions_SK).argmax(axis=0)
    signs = np.sign(directions_SK[largest, np.arange(directions_SK.shape[1])])
    return directions_SK * np.where(signs == 0, 1.0, signs)
