"""Names of the files of a run that hold what was learned: the one place that knows them."""

from __future__ import annotations

GROUP = "group.safetensors"  # what a stage trained; empty where nothing was trained
IDENTITY = "identity.safetensors"  # sums, calibration rows and class features of its tasks
PROBE = "probe.safetensors"  # a few training images with their scores: the canary's yardstick
TASK = "task.json"  # the card: names, digests, counts, calibration, lineage
EXPERTS = "experts.json"  # how tasks use experts
BASIS = "basis.safetensors"  # of the whole run: what compact features are made with
SCHEMA = 2  # of task.json
