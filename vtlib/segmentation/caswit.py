"""CASWiT - Context-Aware Semantic Segmentation via Stage-Wise Attention (Carreaud, Naha, Chansel,
Lahellec, Skaloud, Gressin, 2026, arXiv 2601.11310).

The idea: a picture of ultra-high resolution can be cut into crops, which lose their surroundings,
or shrunk, which loses detail. CASWiT runs two Swin encoders, one on a crop at full resolution, one
on a shrunk window around it; after every stage tokens of the crop query tokens of the context, and
a gate that starts nearly closed decides how much of the answer is added. Pre-training hides most of
the crop and its copy in the context, so that the crop can only be told from its surroundings.

    a crop and the window around it          caswit_context: cut, cut_labels, footprint
    places of tokens in the scene            caswit_context: centres, scene_code, pool_keys
    q = LN(h) Wq;  k, v = LN(l) Wk, LN(l) Wv
    o = softmax(q k^T / sqrt(d)) v Wo
    g = sigmoid(Wg [h ; o] + bg);  h <- h + g o   CrossScaleFusion
    stage, fuse, merge, for every stage      CASWiT.encode
    CE(crop) + lambda CE(context)            caswit_loss
    crops side by side over a large picture  caswit_context: slide
    masked units, hidden centre              caswit_pretraining: mask_units, MaskedPretraining
    sum |x - x'| on hidden pixels / their number / 3    caswit_pretraining: masked_l1

Sure (abstracts and README): two Swin encoders, crops of 512, factor 2, cross-attention with a gate
after each stage, an auxiliary loss on the context branch, UPerNet (version 1) or SegFormer's MLP
decoder (version 2), 75 % of the crop and the context's centre masked. The official code could not
be read, nor the names in its weights (Hugging Face, heig-vd-geo/caswit): nothing converts them.
Inferred here: the window's coverage and its reflection at borders, the size Swin-B, the gate's
formula (`gate` has the other reading, a tanh of one number a channel that starts at 0), keys pooled
to at most 32 x 32, sine codes of the place in the scene added to q and k (times a learnt number a
head: without it no head can look at one place alone), lambda = 0.4 and the auxiliary head, units of
32 pixels, averaged logits of overlapping crops. "Shared dual encoder" is read as the same two
encoders before and after pre-training; `tied` makes them one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..nn import (
    attend,
    check_dtype,
    check_flag,
    check_heads,
    check_images,
    check_int,
    check_ints,
    check_multiple,
    check_number,
    check_tokens,
)
from ..nn.checks import check_float, describe
from .caswit_context import centres, footprint, pool_keys, scene_code
from .cross_entropy import pixel_cross_entropy
from .heads import ConvHead, MLPHead, UPerHead, resize
from .swin import Swin

PAPER = "caswit"

GATES = ("token", "channel", "none")
DECODERS = {"upernet": UPerHead, "mlp": MLPHead}


# ------------------------------------------------------------------------------- the fusion block
class CrossScaleFusion(nn.Module):
    """h + g o: tokens of the crop query those of the context, a gate weighs the answer.

    Codes of places are added to q and k times a number that each head learns: how sharply it looks
    at where things are.

    Args:
        dim: C of both branches.
        num_heads: must divide C; a head needs a multiple of 4 channels.
        gate: "token": sigmoid(Wg [h ; o] + bg), for each token and channel; "channel":
            tanh(a), a = 0 at first; "none": 1.
        gate_bias: bg at first; negative: nearly closed.
        code_scale: what the codes are multiplied by at first.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        gate: str = "token",
        gate_bias: float = -2.0,
        code_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.head_dim = check_heads(dim, num_heads)
        self.num_heads, dim = int(num_heads), self.head_dim * int(num_heads)
        if self.head_dim % 4:
            raise ValueError(f"dim={dim} over num_heads={num_heads}: a head needs 4, 8, ... ")
        if gate not in GATES:
            raise ValueError(f"gate={gate!r}: needs one of {', '.join(GATES)}")
        self.kind, gate_bias = gate, check_number(gate_bias, "gate_bias")
        self.norm_h, self.norm_l = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.wq, self.wk, self.wv = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)
        code_scale = check_number(code_scale, "code_scale")
        self.code_scale = nn.Parameter(torch.full((self.num_heads, 1, 1), code_scale))
        if gate == "token":
            self.gate = nn.Linear(2 * dim, dim)
            nn.init.trunc_normal_(self.gate.weight, std=0.02)
            nn.init.constant_(self.gate.bias, gate_bias)
        elif gate == "channel":
            self.gate = nn.Parameter(torch.zeros(dim))

    def openness(self, h: Tensor, answer: Tensor) -> Tensor:
        """The gate, (B, N, C), or (C,) of kind "channel"."""
        if self.kind == "token":
            return self.gate(torch.cat([h, answer], dim=-1)).sigmoid()
        return self.gate.tanh() if self.kind == "channel" else torch.ones_like(answer)

    def forward(
        self,
        h: Tensor,
        context: Tensor,
        h_code: Tensor,
        context_code: Tensor,
        return_maps: bool = False,
    ) -> Any:
        """(B, N, C) -> (B, N, C); with return_maps also (weights (B, heads, N, M), the gate).

        Args:
            h: tokens of the crop.
            context: (B, M, C).
            h_code: (N, C/heads), codes of their places; each head adds them to the queries.
            context_code: (M, C/heads), likewise to the keys.
            return_maps: whether weights and gate are wanted.
        """
        check_tokens(h, self.wq.in_features, "h")
        check_tokens(context, self.wk.in_features, "context")
        if h.shape[0] != context.shape[0]:
            raise ValueError(f"context has {context.shape[0]} rows but h has {h.shape[0]}")
        for code, tokens, name in ((h_code, h, "h_code"), (context_code, context, "context_code")):
            check_float(code, name)
            need = (tokens.shape[1], self.head_dim)
            if tuple(code.shape) != need:
                raise ValueError(f"{name} has shape {tuple(code.shape)} but needs {need}")
        keys = self.norm_l(context)
        parts = (self.wq(self.norm_h(h)), self.wk(keys), self.wv(keys))
        q, k, v = (rearrange(t, "b n (h p) -> b h n p", h=self.num_heads) for t in parts)
        scale = self.code_scale.to(q.dtype)
        q, k = q + scale * h_code.to(q.dtype), k + scale * context_code.to(k.dtype)
        out = attend(q, k, v, return_attn=return_maps)
        out, weights = out if return_maps else (out, None)
        answer = self.proj(rearrange(out, "b h n p -> b n (h p)"))
        gate = self.openness(h, answer)
        fused = h + gate * answer
        return (fused, (weights, gate)) if return_maps else fused


# --------------------------------------------------------------------------------------- the model
class Encoded(NamedTuple):
    """What the encoders give."""

    features: list[Tensor]  # of the crop, fused: (B, C 2^s, h/4/2^s, w/4/2^s)
    context: Tensor | None  # the context's map that the auxiliary head reads
    maps: list[Any]  # for each fused stage (weights, gate), if wanted


class Segmented(NamedTuple):
    """Scores of classes."""

    logits: Tensor  # (B, K, h, w) of the crop
    context_logits: Tensor | None  # (B, K, h', w') of the context, from its own branch
    maps: list[Any]  # as in Encoded


class CASWiT(nn.Module):
    """Two Swin encoders fused after every stage, and a decoder on the crop's fused maps.

    The defaults are Swin-B, the paper's family of baselines.

    Args:
        num_classes: K.
        embed_dim: C of the first stage.
        depths: blocks of each stage.
        num_heads: of each stage, for windows and for fusion.
        window_size: of the Swin blocks.
        mlp_ratio: hidden width of the MLPs / C.
        drop_path: largest rate of stochastic depth.
        factor: how many times the context is shrunk.
        gate: see `CrossScaleFusion`.
        gate_bias: see `CrossScaleFusion`.
        code_scale: see `CrossScaleFusion`.
        fuse_at: stages after which the branches meet; (3,) is late fusion.
        max_keys: side that the context's map is pooled to before it is attended to.
        tied: whether both branches have the same weights.
        decoder: "upernet" (version 1) or "mlp" (version 2).
        channels: inner width of the decoder.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dim: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (4, 8, 16, 32),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.3,
        factor: int = 2,
        gate: str = "token",
        gate_bias: float = -2.0,
        code_scale: float = 1.0,
        fuse_at: Sequence[int] = (0, 1, 2, 3),
        max_keys: int = 32,
        tied: bool = False,
        decoder: str = "upernet",
        channels: int = 512,
    ) -> None:
        super().__init__()
        sizes = (embed_dim, depths, num_heads, window_size, mlp_ratio, drop_path)
        self.hr = Swin(*sizes)
        self.aux_stage = max(len(self.hr.dims) - 2, 0)
        self.lr = self.hr if check_flag(tied, "tied") else Swin(*sizes, outputs=(self.aux_stage,))
        self.factor = check_int(factor, "factor", 1)
        self.max_keys = check_int(max_keys, "max_keys", 1)
        self.fuse_at = check_ints(fuse_at, "fuse_at", 0)
        if any(s >= len(self.hr.dims) for s in self.fuse_at):
            raise ValueError(f"fuse_at={self.fuse_at} but there are {len(self.hr.dims)} stages")
        if decoder not in DECODERS:
            raise ValueError(f"decoder={decoder!r}: needs one of {', '.join(DECODERS)}")
        self.fusions = nn.ModuleDict({
            str(s): CrossScaleFusion(self.hr.dims[s], num_heads[s], gate, gate_bias, code_scale)
            for s in self.fuse_at
        })
        self.decoder = DECODERS[decoder](self.hr.dims, num_classes, channels)
        self.aux_head = ConvHead(self.hr.dims[self.aux_stage], num_classes, max(channels // 2, 1))

    def embed(self, images: Tensor, branch: Swin, name: str) -> Tensor:
        """The patches of a branch: (B, 3, H, W) -> (B, H/4, W/4, C).

        Args:
            images: sides must be multiples of 4.
            branch: `hr` or `lr`.
            name: what a message calls the images.
        """
        check_images(images, name=name)
        check_dtype(images, branch.patch_embed.proj.weight, name)
        check_multiple(images.shape[-2:], branch.patch_embed.patch_size, f"{name} size")
        return branch.patch_embed(images)

    def fuse(self, h: Tensor, context: Tensor, stage: int, corner: Any, wanted: bool) -> Any:
        """The fusion block of a stage on maps: (B, h, w, C) -> the same.

        Args:
            h: the crop's map.
            context: the context's.
            stage: which.
            corner: row and column where the crop begins, in pixels of the context.
            wanted: whether weights and gate are returned too.
        """
        block, device = self.fusions[str(stage)], h.device
        pitch = self.hr.patch_embed.patch_size * 2**stage
        own = [
            centres(n, pitch / self.factor, first, device)
            for n, first in zip(h.shape[1:3], corner, strict=True)
        ]
        around = []                                              # pooled as the keys are
        for n in context.shape[1:3]:
            line = centres(n, pitch, 0.0, device)[None, None, :, None]
            around.append(pool_keys(line, self.max_keys).flatten())
        keys = pool_keys(rearrange(context, "b h w c -> b c h w"), self.max_keys)
        keys = rearrange(keys, "b c h w -> b (h w) c")
        codes = (scene_code(*places, block.head_dim) for places in (own, around))
        out = block(h.flatten(1, 2), keys, *codes, return_maps=wanted)
        out, maps = out if wanted else (out, None)
        return out.unflatten(1, h.shape[1:3]), maps

    def encode(self, h: Tensor, context: Tensor | None, return_maps: bool = False) -> Encoded:
        """Both encoders, from the embedded patches on.

        The fused map goes into the crop's next stage; the context's branch never sees the crop.

        Args:
            h: (B, h, w, C), of the crop.
            context: (B, h', w', C), None: the crop's encoder alone.
            return_maps: whether weights and gates are wanted.
        """
        patch = self.hr.patch_embed.patch_size
        corner = (0.0, 0.0)
        if context is not None:
            sizes = ([patch * n for n in t.shape[1:3]] for t in (h, context))
            rows, cols = footprint(*sizes, self.factor)
            corner = (rows[0], cols[0])
        features, maps, read = [], [], None
        for s, stage in enumerate(self.hr.layers):
            h = stage(h)
            if context is not None:
                context = self.lr.layers[s](context)
                if s in self.fuse_at:
                    h, seen = self.fuse(h, context, s, corner, return_maps)
                    maps.append(seen)
                if s == self.aux_stage:
                    read = self.lr.normed(context, s)
            features.append(self.hr.normed(h, s))
            if stage.downsample is not None:
                h = stage.downsample(h)
                context = None if context is None else self.lr.layers[s].downsample(context)
        return Encoded(features, read, maps if return_maps else [])

    def forward(
        self, crop: Tensor, context: Tensor | None = None, return_maps: bool = False
    ) -> Segmented:
        """Scores of the crop's pixels, and of the context's by the auxiliary head.

        Args:
            crop: (B, 3, h, w), multiples of 4.
            context: (B, 3, h', w'), the shrunk window around its centre, see `cut`; None: the
                network without context.
            return_maps: whether weights and gates of the fusion are wanted.
        """
        return_maps = check_flag(return_maps, "return_maps")
        h = self.embed(crop, self.hr, "crop")
        embedded = None
        if context is not None:
            embedded = self.embed(context, self.lr, "context")
            if crop.shape[0] != context.shape[0]:
                raise ValueError(f"context has {context.shape[0]} images, crop {crop.shape[0]}")
        features, read, maps = self.encode(h, embedded, return_maps)
        logits = resize(self.decoder(features), crop.shape[-2:])
        if context is None:
            return Segmented(logits, None, maps)
        return Segmented(logits, resize(self.aux_head(read), context.shape[-2:]), maps)


def caswit_loss(
    out: Segmented,
    labels: Tensor,
    context_labels: Tensor | None = None,
    lr_weight: float = 0.4,
    ignore_index: int = 255,
) -> Tensor:
    """CE of the crop + lr_weight * CE of the context branch; a scalar.

    Args:
        out: of `CASWiT`.
        labels: (B, h, w) long.
        context_labels: (B, h', w') long, of the whole window, see `cut_labels`; None: no second
            term.
        lr_weight: lambda.
        ignore_index: pixels with this label count nowhere; 0 where no other is.

    Scores are resized to labels of another size. ValueError for another dtype or batch, and for a
    label that is no class.
    """
    if not isinstance(out, Segmented):
        raise ValueError(f"out is {describe(out)} but needs to be a Segmented")
    lr_weight = check_number(lr_weight, "lr_weight", 0)
    loss = pixel_cross_entropy(out.logits, labels, ignore_index, labelled_only=True)
    if context_labels is None:
        return loss
    if out.context_logits is None:
        raise ValueError("context_labels are given but out was made without a context")
    around = pixel_cross_entropy(
        out.context_logits, context_labels, ignore_index, labelled_only=True, name="context_labels"
    )
    return loss + lr_weight * around
