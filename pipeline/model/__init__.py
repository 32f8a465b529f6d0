"""Frozen CLIP, expert groups, routers, mixing and fusion: plain PyTorch, usable without Ray."""
