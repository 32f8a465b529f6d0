"""Recognise tasks by their signatures: no training, no data of earlier tasks, exact to forget.

Four ways to score an image against the learned tasks (`identifier.signature`):

- `gaussian`: task means and one covariance pooled within tasks (linear discriminants).
- `mean`: cosine to the task's mean (the paper's prototype).
- `class_means`: log-mean-exp of cosines to class means, so that many classes are no advantage.
- `ridge`: regression on random ReLU features, every task weighted equally.

"None" is decided by the relative Mahalanobis distance `min_c M_c(x) - M_0(x)` to the class means
against the background (method 2.7). The covariance of `M_c` is pooled within classes over all
learned tasks and over the background, which counts as `identifier.background_weight` tasks: with
few tasks it would fit their training images too closely, and every threshold would drift as soon
as a task is added. The threshold accepts a chosen share of held-out images. Their scores are kept
as quantiles from the stage in which they were learned; since the pooled covariance still moves with
every task, they are shifted by the exact change of the task's expected score, which follows from
its signature alone.

Shapes: B images, T tasks, F signature features, M class means of all tasks, R random features.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.identifiers.base import Evidence, Identification, Identifier, Study, register
from pipeline.identifiers.description import Description
from pipeline.identifiers.looker import Looker
from pipeline.identifiers.signature import (
    Background,
    Signature,
    precision_factor,
    shrunk,
    squared_distances,
)
from pipeline.settings import IdentifierSettings

QUANTILES = np.linspace(0.0, 1.0, 101)
TEMPERATURES = np.geomspace(1.0, 256.0, 33)
COSINE_TEMPERATURE = 0.02  # sharpness of the log-mean-exp over class means
RIDGE_SEED = 7
FIRST_ACCEPTANCE = 0.99  # at the first stage nothing unseen was ever scored


@dataclass
class _Known:
    signature: Signature
    calibration: dict = field(default_factory=dict)


@register
class Prototype(Identifier):
    """The signature identifier; see the module's text."""

    name = "prototype"

    def __init__(
        self,
        settings: IdentifierSettings,
        background: Background,
        acceptance: float = 0.98,
        looker: Looker | None = None,
    ) -> None:
        super().__init__(settings, background, acceptance, looker)
        self._known: dict[str, _Known] = {}
        self._whiten_0 = background.whitening(settings.shrinkage)
        self._dirty = True
        self._rule: tuple[float, float, float] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Learned tasks, in the order of learning."""
        return tuple(self._known)

    def numbers(self) -> int:
        """Numbers stored in all signatures."""
        return sum(known.signature.numbers() for known in self._known.values())

    def learn(
        self, task: str, signature: Signature, held_out: np.ndarray, study: Study | None = None
    ) -> dict:
        """Add a task and calibrate on its held-out fold."""
        unseen = None
        if self._known:
            unseen = _sketch(self.identify(Evidence(held_out)).unseen_score)
        self._add(task, signature)
        scores = self._task_scores(held_out)
        calibration = {
            "temperature": _temperature(scores, self.tasks.index(task)),
            "seen": _sketch(self._unseen_scores(held_out)),
            "expected": float(self._expected[self.tasks.index(task)]),
            "unseen": unseen,
        }
        self._known[task].calibration = calibration
        self._rule = None
        return calibration

    def restore(
        self,
        task: str,
        signature: Signature,
        calibration: dict,
        description: Description | None = None,
    ) -> None:
        """Add a task with the calibration of its own stage."""
        self._add(task, signature)
        self._known[task].calibration = calibration
        self._rule = None

    def _add(self, task: str, signature: Signature) -> None:
        if task in self._known:
            raise ValueError(f"task '{task}' is known already")
        self._known[task] = _Known(signature)
        self._dirty = True

    def forget(self, task: str) -> None:
        """Remove a task's statistics; the rest is summed again."""
        del self._known[task]
        self._dirty = True

    def identify(self, evidence: Evidence) -> Identification:
        """Score each image against every task and against none."""
        features = evidence.features
        if not self._known:
            count = len(features)
            return Identification(
                (), np.ones((count, 1)), np.zeros((count, 0)), np.full(count, -1), np.zeros(count)
            )
        shares = _softmax(self._task_scores(features) / self._temperature())
        unseen = self._unseen_scores(features)
        threshold, slope, offset = self._none_rule()
        none = 1.0 / (1.0 + np.exp(-np.clip((unseen - offset) * slope, -60.0, 60.0)))
        probabilities = np.concatenate([shares * (1.0 - none)[:, None], none[:, None]], axis=1)
        chosen = np.where(unseen > threshold, -1, shares.argmax(axis=1))
        return Identification(self.tasks, probabilities, shares, chosen, unseen)

    @property
    def threshold(self) -> float:
        """Unseen scores above it mean none."""
        return self._none_rule()[0]

    # -- statistics over all learned tasks, summed in a fixed order ---------------------------

    def _refresh(self) -> None:
        if not self._dirty:
            return
        self._rule = None
        ordered = sorted(self._known)
        signatures = [self._known[task].signature for task in ordered]
        weight = self.settings.background_weight
        within = self.background.covariance * (weight / (len(signatures) + weight))
        total = np.zeros_like(within)
        for signature in signatures:  # equal weights, fixed order: exact whatever the history
            own = signature.within
            within += own / (len(signatures) + weight)
            total += (own + signature.between) / len(signatures)
        self._whiten = precision_factor(shrunk(within, self.settings.shrinkage))
        self._class_means = np.concatenate(
            [self._known[task].signature.means for task in self.tasks]
        )
        self._whitened_means = self._class_means @ self._whiten
        self._whitened_norms = (self._whitened_means**2).sum(axis=1)
        factor = precision_factor(shrunk(total, self.settings.shrinkage))
        means = np.stack([self._known[task].signature.mean for task in self.tasks])
        whitened = means @ factor
        self._linear = factor @ whitened.T
        self._constant = -0.5 * (whitened**2).sum(axis=1)
        self._means = means
        self._expected = np.array([self._expect(self._known[t].signature) for t in self.tasks])
        if self.settings.signature == "ridge":
            self._solve_ridge(ordered)
        self._dirty = False

    def _expect(self, signature: Signature) -> float:
        """Expected unseen score of a task's own images, from its signature alone."""
        own = np.einsum("fk,fk->", signature.within @ self._whiten, self._whiten)
        offset = (signature.mean - self.background.mean) @ self._whiten_0
        against = np.einsum("fk,fk->", signature.covariance @ self._whiten_0, self._whiten_0)
        return float(own - against - offset @ offset)

    def _task_scores(self, features: np.ndarray) -> np.ndarray:
        """(B, T) larger = more like the task."""
        self._refresh()
        kind = self.settings.signature
        if kind == "gaussian":
            return features @ self._linear + self._constant
        if kind == "ridge":
            return 50.0 * (_relu_features(features, self._ridge_map()) @ self._ridge)
        centre = self.background.mean
        unit = _unit(features - centre)
        if kind == "mean":
            return unit @ _unit(self._means - centre).T / COSINE_TEMPERATURE
        cosine = unit @ _unit(self._class_means - centre).T / COSINE_TEMPERATURE
        sizes = [len(self._known[task].signature.means) for task in self.tasks]
        parts = np.split(cosine, np.cumsum(sizes)[:-1], axis=1)
        return np.stack([_log_mean_exp(part) for part in parts], axis=1)

    def _unseen_scores(self, features: np.ndarray) -> np.ndarray:
        """(B,) relative Mahalanobis distance to the nearest class."""
        self._refresh()
        whitened = features @ self._whiten
        near = squared_distances(whitened, self._whitened_means, self._whitened_norms).min(axis=1)
        return near - (((features - self.background.mean) @ self._whiten_0) ** 2).sum(axis=1)

    # -- calibration -------------------------------------------------------------------------

    def _temperature(self) -> float:
        values = [
            known.calibration["temperature"]
            for known in self._known.values()
            if known.calibration.get("temperature") is not None
        ]
        return float(np.exp(np.mean(np.log(values)))) if values else 1.0

    def _none_rule(self) -> tuple[float, float, float]:
        """Threshold of the unseen score, and the logistic curve of its probability."""
        if not self._known:
            return float("inf"), 1.0, float("inf")
        self._refresh()
        if self._rule is None:
            self._rule = self._calibrated_rule()
        return self._rule

    def _calibrated_rule(self) -> tuple[float, float, float]:
        seen, unseen = [], []
        for index, known in enumerate(self._known.values()):
            calibration = known.calibration
            if not calibration:
                continue
            moved = self._expected[index] - calibration["expected"]
            seen.append(np.asarray(calibration["seen"]) + moved)
            if calibration["unseen"] is not None:
                unseen.append(np.asarray(calibration["unseen"]))
        if not seen:
            return float("inf"), 1.0, float("inf")
        accepted = self.acceptance if unseen else max(self.acceptance, FIRST_ACCEPTANCE)
        pooled = np.concatenate(seen)
        threshold = float(np.quantile(pooled, accepted))
        spread = float(pooled.std()) or 1.0
        if not unseen:
            return threshold, 4.0 / spread, threshold
        other = np.concatenate(unseen)
        # equal variances, equal priors: the posterior of two Gaussians is a logistic curve
        variance = 0.5 * (pooled.var() + other.var()) or 1.0
        gap = max(float(other.mean() - pooled.mean()), 1e-3 * spread)
        return threshold, float(gap / variance), float(0.5 * (other.mean() + pooled.mean()))

    # -- ridge -------------------------------------------------------------------------------

    def _ridge_map(self) -> np.ndarray:
        width = len(self.background.mean)
        draw = np.random.default_rng(RIDGE_SEED).standard_normal(
            (width, self.settings.ridge_features)
        )
        return draw / np.sqrt(width)

    def prepare(self, signature: Signature, features: np.ndarray) -> Signature:
        """Add the sums that the `ridge` signature needs."""
        if self.settings.signature != "ridge":
            return signature
        phi = _relu_features(features, self._ridge_map())
        gram = (phi.T @ phi)[np.triu_indices(phi.shape[1])]
        return Signature(signature.counts, signature.means, signature.packed, gram, phi.sum(axis=0))

    def _mean_relu(self, task: str) -> np.ndarray:
        signature = self._known[task].signature
        assert signature.cross is not None
        return signature.cross / signature.total

    def _solve_ridge(self, ordered: list[str]) -> None:
        width = self.settings.ridge_features
        packed = np.zeros(width * (width + 1) // 2)
        for task in ordered:
            signature = self._known[task].signature
            assert signature.gram is not None
            packed += signature.gram / signature.total
        gram = np.zeros((width, width))
        gram[np.triu_indices(width)] = packed
        gram += np.triu(gram, 1).T
        targets = np.stack([self._mean_relu(task) for task in self.tasks], axis=1)
        self._ridge = np.linalg.solve(shrunk(gram, self.settings.shrinkage), targets)


def _relu_features(features: np.ndarray, projection: np.ndarray) -> np.ndarray:
    return np.maximum(features.astype(np.float64) @ projection, 0.0)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _softmax(z: np.ndarray) -> np.ndarray:
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def _log_mean_exp(z: np.ndarray) -> np.ndarray:
    top = z.max(axis=1)
    return top + np.log(np.exp(z - top[:, None]).mean(axis=1))


def _sketch(scores: np.ndarray) -> list[float]:
    return [float(value) for value in np.quantile(scores, QUANTILES)]


def _temperature(scores: np.ndarray, index: int) -> float | None:
    """Temperature of the lowest cross-entropy on a task's own held-out images; None if alone."""
    if scores.shape[1] < 2:
        return None
    losses = [
        -np.log(np.maximum(_softmax(scores / t)[:, index], 1e-12)).mean() for t in TEMPERATURES
    ]
    return float(TEMPERATURES[int(np.argmin(losses))])
