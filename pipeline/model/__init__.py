"""Frozen CLIP, expert groups, routers and mixing: plain PyTorch, usable without Ray."""
