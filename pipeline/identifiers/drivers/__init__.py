"""Drivers of multimodal models, one file each; see `pipeline/identifiers/scorer.py`."""
