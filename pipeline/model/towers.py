"""The two frozen encoders of CLIP as explicit forwards over open_clip's blocks.

Shapes: B batch, L tokens, D width, H heads, F embedding of CLIP.

A forward is cut at any block, so that a frozen trunk runs once for all tasks; cut at -1, it begins
with what comes before the embedding, so that this can be trained too. What a group adds to
a block comes in as `delta(block, h_BLD, q_BD)`: `h` is LN2's output, `q` the token a router reads
(CLS for images, end of text for captions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Delta = Callable[[int, Tensor, Tensor], Tensor | None]


def _attend(block: Any, x_BLD: Tensor, causal: bool) -> Tensor:
    attention = block.attn
    B, L, D = x_BLD.shape
    heads = attention.num_heads
    qkv = F.linear(x_BLD, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.view(B, L, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
    y_BHLd = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return attention.out_proj(y_BHLd.transpose(1, 2).reshape(B, L, D))


def _attend_from(block: Any, x_BLD: Tensor, position_B: Tensor | None, causal: bool) -> Tensor:
    """Attention of one token a sample to all it may see, (B, D)."""
    attention = block.attn
    B, L, D = x_BLD.shape
    heads = attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    at = 0 if position_B is None else position_B
    x_BD = x_BLD[torch.arange(B, device=x_BLD.device), at]
    q = F.linear(x_BD, weight[:D], bias[:D]).view(B, heads, 1, D // heads)
    k, v = (
        F.linear(x_BLD, weight[D:], bias[D:])
        .view(B, L, 2, heads, D // heads)
        .permute(2, 0, 3, 1, 4)
    )
    mask = None
    if causal and position_B is not None:
        mask = (torch.arange(L, device=x_BLD.device) <= position_B[:, None])[:, None, None]
    y_BHLd = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attention.out_proj(y_BHLd.reshape(B, D))


class Tower(nn.Module):
    """What both encoders share: a list of pre-norm residual blocks."""

    causal: bool

    def __init__(self, blocks: nn.ModuleList, width: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.width = width

    @property
    def depth(self) -> int:
        """Number of residual blocks."""
        return len(self.blocks)

    def _query(self, h_BLD: Tensor, position_B: Tensor | None) -> Tensor:
        if position_B is None:
            return h_BLD[:, 0]
        return h_BLD[torch.arange(len(h_BLD), device=h_BLD.device), position_B]

    def run(
        self,
        x_BLD: Tensor,
        start: int,
        stop: int,
        delta: Delta | None = None,
        position_B: Tensor | None = None,
        record: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Blocks `start <= i < stop`: `x = x + FFN(h) + delta(i, h, q)` (method 2.2).

        Args:
            x_BLD: input of block `start`.
            start: first block to run.
            stop: one past the last block.
            delta: what a group adds, or None for the frozen encoder.
            position_B: index of the routing token; None = token 0.
            record: called with (number of blocks passed, their output).

        Returns:
            (B, L, D), the input of block `stop`.
        """
        for index in range(start, stop):
            block: Any = self.blocks[index]
            x_BLD = x_BLD + block.ls_1(_attend(block, block.ln_1(x_BLD), self.causal))
            h_BLD = block.ln_2(x_BLD)
            x_BLD = x_BLD + block.ls_2(block.mlp(h_BLD))
            if delta is not None:
                added = delta(index, h_BLD, self._query(h_BLD, position_B))
                if added is not None:
                    x_BLD = x_BLD + added
            if record is not None:
                record(index + 1, x_BLD)
        return x_BLD

    def pooled(
        self,
        x_BLD: Tensor,
        start: int,
        delta: Delta | None = None,
        position_B: Tensor | None = None,
        record: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """All blocks from `start` on, but of the last one only the token that is read, (B, D).

        The same numbers as `run` to the end followed by picking the token, up to rounding: other
        tokens of the last block reach nothing. Saves most of that block, forward and backward.
        """
        if start < 0:
            x_BLD, start = self.embed_parts(x_BLD), 0
        last = self.depth - 1
        assert start <= last, "the last block would run twice"
        x_BLD = self.run(x_BLD, start, last, delta, position_B, record)
        block: Any = self.blocks[last]
        x_BD = self._query(x_BLD, position_B)
        y_BD = _attend_from(block, block.ln_1(x_BLD), position_B, self.causal)
        x_BD = x_BD + block.ls_1(y_BD)
        h_BD = block.ln_2(x_BD)
        x_BD = x_BD + block.ls_2(block.mlp(h_BD))
        added = None if delta is None else delta(last, h_BD.unsqueeze(1), h_BD)
        return x_BD if added is None else x_BD + added.squeeze(1)

    def embed_parts(self, x_BLP: Tensor) -> Tensor:
        """The input of block 0 from what lies before the embedding, see the subclasses' `trunk`."""
        raise NotImplementedError

    def depths(self, start: int) -> list[int]:
        """Blocks passed where token maps are read: the trunk's end, half of the rest, the end."""
        return sorted({start, (start + self.depth + 1) // 2, self.depth})

    def maps(self, x_BLD: Tensor, start: int, delta: Delta | None = None) -> list[Tensor]:
        """Token maps (B, L, D) at `depths(start)` from the input of block `start`."""
        wanted, found = self.depths(start), [x_BLD]

        def record(passed: int, x: Tensor) -> None:
            if passed in wanted:
                found.append(x)

        self.run(x_BLD, start, self.depth, delta, record=record)
        return found


class ImageTower(Tower):
    """open_clip's VisionTransformer with a CLS token."""

    causal = False
    visual: Any

    def __init__(self, visual: Any) -> None:
        super().__init__(visual.transformer.resblocks, visual.transformer.width)
        self.visual = visual
        self.image_size = int(visual.image_size[0])

    @property
    def tokens(self) -> int:
        """Sequence length L with the CLS token."""
        return int(self.visual.positional_embedding.shape[0])

    @property
    def grid(self) -> int:
        """Side of the square of tokens that follow the CLS token."""
        return round((self.tokens - 1) ** 0.5)

    def trunk(
        self,
        image_BCHW: Tensor,
        first: int,
        record: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Normalised pixels to the input of block `first`; of -1, the pixels of each patch
        (B, L, 3 P P), zeros in the place of the CLS token."""
        if first >= 0:
            return self.run(self.embed(image_BCHW), 0, first, record=record)
        side = self.visual.conv1.kernel_size
        return F.pad(F.unfold(image_BCHW, side, stride=side).transpose(1, 2), (0, 0, 1, 0))

    def trunk_width(self, first: int) -> int:
        """Numbers a token has at the input of block `first`."""
        return self.width if first >= 0 else int(self.visual.conv1.weight[0].numel())

    def embed(self, image_BCHW: Tensor) -> Tensor:
        """Normalised pixels to the input of block 0, (B, L, D)."""
        return self._embedded(self.visual.conv1(image_BCHW).flatten(2).transpose(1, 2))

    def embed_parts(self, x_BLP: Tensor) -> Tensor:
        """Pixels of patches, as `trunk` gives them, to the input of block 0."""
        conv = self.visual.conv1
        return self._embedded(F.linear(x_BLP[:, 1:], conv.weight.flatten(1), conv.bias))

    def _embedded(self, x: Tensor) -> Tensor:
        visual = self.visual
        cls = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return visual.ln_pre(torch.cat([cls, x], dim=1) + visual.positional_embedding.to(x.dtype))

    def finish(self, x_BD: Tensor) -> Tensor:
        """The CLS token after the last block to features (B, F), not normalised, float32."""
        return (self.visual.ln_post(x_BD) @ self.visual.proj).float()

    def embedding(self) -> Iterable[nn.Parameter]:
        """Parameters that come before block 0."""
        visual = self.visual
        own = [*visual.conv1.parameters(), *visual.ln_pre.parameters()]
        return [*own, visual.class_embedding, visual.positional_embedding]

    def head(self) -> Iterable[nn.Parameter]:
        """Parameters that follow the last block."""
        return [*self.visual.ln_post.parameters(), self.visual.proj]


class TextTower(Tower):
    """open_clip's causal text transformer, pooled at the end-of-text token."""

    causal = True
    text: Any

    def __init__(self, text: Any, eot_id: int | None) -> None:
        super().__init__(text.transformer.resblocks, text.transformer.width)
        self.text = text
        self.eot_id = eot_id

    def positions(self, tokens_BL: Tensor) -> Tensor:
        """Index of the end-of-text token of each caption, (B,)."""
        if self.eot_id is None:
            return tokens_BL.argmax(dim=-1)
        return (tokens_BL == self.eot_id).int().argmax(dim=-1)

    def trim(self, tokens_BL: Tensor) -> Tensor:
        """Cut the padding after the longest caption: exact, since attention is causal."""
        return tokens_BL[:, : int(self.positions(tokens_BL).max()) + 1]

    def trunk(self, tokens_BL: Tensor, first: int) -> Tensor:
        """Token ids to the input of block `first`; of -1, the ids themselves, (B, L, 1)."""
        if first < 0:
            return tokens_BL.unsqueeze(-1).float()
        return self.run(self.embed(tokens_BL), 0, first, None, self.positions(tokens_BL))

    def embed_parts(self, x_BLP: Tensor) -> Tensor:
        """Token ids, as `trunk` gives them, to the input of block 0."""
        return self.embed(x_BLP.squeeze(-1).long())

    def embedding(self) -> Iterable[nn.Parameter]:
        """Parameters that come before block 0."""
        return [*self.text.token_embedding.parameters(), self.text.positional_embedding]

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """Token ids to the input of block 0, (B, L, D)."""
        x_BLD = self.text.token_embedding(tokens_BL)
        return x_BLD + self.text.positional_embedding[: tokens_BL.shape[1]]

    def finish(self, x_BD: Tensor) -> Tensor:
        """The end-of-text token after the last block to features (B, F), not normalised,
        float32."""
        pooled = self.text.ln_final(x_BD)
        projection = self.text.text_projection
        if isinstance(projection, nn.Linear):
            pooled = projection(pooled)
        elif projection is not None:
            pooled = pooled @ projection
        return pooled.float()

    def head(self) -> Iterable[nn.Parameter]:
        """Parameters that follow the last block."""
        projection = self.text.text_projection
        tail = projection.parameters() if isinstance(projection, nn.Linear) else [projection]
        return [*self.text.ln_final.parameters(), *tail]
