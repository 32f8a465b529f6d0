"""The seam for a second opinion on which domain an image is from.

The answer of the signatures is always there first. For an identifier that looks, a consultant may
ask its multimodal model about the images under the margin, within a deadline of its own; whatever
comes late counts as no opinion.
"""

from __future__ import annotations

from typing import Protocol

from pipeline.identifiers import Evidence, Identification, Identifier


class Consultant(Protocol):
    """Somebody slower who may know better."""

    def consult(
        self, identifier: Identifier, evidence: Evidence, found: Identification
    ) -> Identification:
        """The identification to go by, before the deadline.

        Args:
            identifier: the run's own, restored without a model.
            evidence: the images and their features.
            found: what the signatures say.
        """
        ...


class Nobody:
    """No second opinion."""

    def consult(
        self, identifier: Identifier, evidence: Evidence, found: Identification
    ) -> Identification:
        """What the signatures say."""
        return found
