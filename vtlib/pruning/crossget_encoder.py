"""CrossGET's dual encoder: CLIP's two towers with a cross token and a merge in every layer (Shi,
Tao, Rao, Yang, Yuan, Wang, ICML 2024, arXiv 2305.17455). What happens to the tokens, `match` and
`ensemble`, is in `crossget`.

The idea: a cross token travels behind the tokens of each tower; its query says which of them
matter, they are merged later and with more weight. In each layer it is renewed: the tower's own
summary plus one learned vector. A loss pulls these vectors of the image's layers towards the
text's, so that the image's tower learns what texts ask for without reading one.

    logits + log s of the key                                       Attention
    cross token = stopgrad(its own past, in text: [EOT])
                  + the layer's vector                              Transformer
    attention; importance, match, ensemble; MLP                     Block
    (1 - w) contrast + w JS(softmax(image cross),
                            softmax(text cross))                    CrossGETCLIP.losses, cross_loss

State-dict names of `CrossGETCLIP` are the official ones. Different from the official code
(sdc17/CrossGET): [EOT] is followed by its index (there: by the largest of the averaged token ids).
"""

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import attend, check_heads, check_images, check_multiple
from ..tokens import take
from .crossget import ensemble, importance_cosine, match, merges


class Attention(nn.Module):
    """Attention that counts a key as often as its size: softmax(q k^T / sqrt(P) + log size) v.

    Names of nn.MultiheadAttention.
    """

    def __init__(self, dim, num_heads):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x, bias):
        """x (B, t, D), bias broadcastable to (B, heads, t, t) -> out, queries, keys: (B, t, D)."""
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        heads = (rearrange(part, "b n (h p) -> b h n p", h=self.num_heads) for part in parts)
        out = rearrange(attend(*heads, bias), "b h n p -> b n (h p)")
        return self.out_proj(out), parts[0], parts[1]


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """x = x + Attention(LN(x)); x = reduce(x); x = x + MLP(LN(x))."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        wide, narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.mlp = nn.Sequential(OrderedDict(c_fc=wide, gelu=QuickGELU(), c_proj=narrow))

    def forward(self, x, size, r, eot=None, guidance=1.0, method="complete"):
        """One layer.

        Args:
            x: (B, t, D), the cross token last.
            size: (B, t).
            r: tokens to merge away.
            eot: (B,) long, the position of [EOT]; None in the image's tower.
            guidance: factor on the importance.
            method: of `match`.

        Returns x (B, t - r, D), sizes, the position of [EOT], the plan (None: nothing merges).
        """
        bias = size.log()[:, None, None]                                # b 1 1 t
        if eot is not None:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            bias = bias.masked_fill(later, -math.inf)                   # b 1 t t, the causal mask
        y, query, key = self.attn(self.ln_1(x), bias)
        x, plan = x + y, None
        if merges(r, x.shape[1], 2 + (eot is not None)):
            asking = query[:, -1] if eot is None else take(query, eot[:, None])[:, 0]
            importance = guidance * importance_cosine(key, asking)
            pairs = match(key, importance, r, eot=eot, method=method)
            plan, size = ensemble(pairs, size)
            x = plan.apply(x)
            if eot is not None:
                eot = eot - (pairs.source < eot[:, None]).sum(1)        # as many as went before it
        return x + self.mlp(self.ln_2(x)), size, eot, plan


class Transformer(nn.Module):
    """Blocks with one cross vector each, `cross_image` or `cross_text` (1, layers, D), zero at the
    start.

    Args:
        dim: D.
        num_layers: how many blocks.
        num_heads: of each block's attention.
        kind: "image" or "text".
    """

    def __init__(self, dim, num_layers, num_heads, kind):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.kind = f"cross_{kind}"
        self.register_parameter(self.kind, nn.Parameter(torch.zeros(1, num_layers, dim)))

    def forward(self, x, r, eot=None, guidance=1.0, method="complete"):
        """All layers.

        Args:
            x: (B, t, D); its last token is replaced in each layer.
            r: tokens to merge away in each layer.
            eot: (B,) long, the position of [EOT]; None in the image's tower.
            guidance: factor on the importance.
            method: of `match`.

        Returns x, sizes (B, t'), eot, cross tokens (layers, B, D), plans.
        """
        size = x.new_ones(x.shape[:2], dtype=torch.float32)
        crosses, plans = [], []
        for i, block in enumerate(self.resblocks):
            past = x[:, -1] if eot is None else take(x, eot[:, None])[:, 0]
            cross = past.detach() + getattr(self, self.kind)[:, i]      # gradient: the vector alone
            crosses.append(cross)
            x = torch.cat([x[:, :-1], cross[:, None].to(x.dtype)], dim=1)
            x, size, eot, plan = block(x, size, r, eot, guidance, method)
            plans.append(plan)
        return x, size, eot, torch.stack(crosses), plans


class Encoded(NamedTuple):
    """What a tower makes.

    feature (B, E), not normalised.
    cross (layers, B, E), projected cross tokens.
    plans: one per layer over its tokens ([CLS], patches, cross token; in text: tokens, cross
        token), None where it merges nothing.
    size (B, t'): what the last tokens stand for.
    """

    feature: Tensor
    cross: Tensor
    plans: list
    size: Tensor


class VisionTower(nn.Module):
    """CLIP's ViT with a cross token behind the patches.

    Args:
        img_size: side of the square images in pixels, a multiple of patch_size.
        patch_size: side of a patch in pixels.
        dim: D, of the tokens.
        num_layers: how many blocks.
        num_heads: of each block's attention.
        embed_dim: of the features that both towers share.
    """

    def __init__(self, img_size, patch_size, dim, num_layers, num_heads, embed_dim):
        super().__init__()
        check_multiple((img_size, img_size), patch_size, "img_size")
        self.img_size, scale = img_size, dim**-0.5
        self.conv1 = nn.Conv2d(3, dim, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(dim))
        num_places = (img_size // patch_size) ** 2 + 1
        self.positional_embedding = nn.Parameter(scale * torch.randn(num_places, dim))
        self.ln_pre, self.ln_post = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.transformer = Transformer(dim, num_layers, num_heads, "image")
        self.proj = nn.Parameter(scale * torch.randn(dim, embed_dim))

    def forward(self, images, r, guidance, method):
        """Images to `Encoded`: feature, projected cross tokens, plans, sizes.

        Args:
            images: (B, 3, H, W) with H = W = img_size; ValueError otherwise.
            r: tokens to merge away in each layer.
            guidance: factor on the importance.
            method: of `match`.
        """
        check_images(images)
        if images.shape[-2:] != (self.img_size,) * 2:
            raise ValueError(
                f"images has shape {tuple(images.shape)} but this model needs "
                f"{self.img_size} x {self.img_size}"
            )
        x = rearrange(self.conv1(images), "b d h w -> b (h w) d")
        cls = self.class_embedding.expand(x.shape[0], 1, -1).to(x.dtype)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding
        x = self.ln_pre(torch.cat([x, x[:, :1]], dim=1))                # b 1+n+1 d: a copy of [CLS]
        x, size, _, cross, plans = self.transformer(x, r, None, guidance, method)
        feature = self.ln_post(x[:, 0]) @ self.proj
        return Encoded(feature, _project(cross, self.ln_pre, self.proj), plans, size)


def _project(cross, norm, proj):
    """The cross tokens in the joint space; the loss on them may not move the norm and the
    projection."""
    weight, bias = norm.weight.detach(), norm.bias.detach()
    normed = F.layer_norm(cross, norm.normalized_shape, weight, bias, norm.eps)
    return normed @ proj.detach()


def cross_loss(image_cross: Tensor, text_cross: Tensor) -> Tensor:
    """How far softmax(a) and softmax(b) are apart, in nats, mean over all but the last axis:
    a, b (..., E) -> ().

    With m = (softmax a + softmax b) / 2 the mean of KL(m || softmax a) and KL(m || softmax b). m
    comes first, as in the official code; the Jensen-Shannon divergence proper has it second.
    """
    a, b = image_cross.float().log_softmax(-1), text_cross.float().log_softmax(-1)
    mean = (a.exp() + b.exp()) / 2
    return (torch.special.xlogy(mean, mean) - mean * (a + b) / 2).sum(-1).mean()


class CrossGETCLIP(nn.Module):
    """CLIP's two towers with CrossGET in each layer: images (B, 3, S, S), token ids (B, L) ->
    logits (B, B), rows are images.

    Token ids: [EOT] has the largest id of a row, what follows it is padding; L <= context. Defaults
    are CLIP ViT-B/16 with r = 16 on the images.

    Args:
        img_size: S.
        patch_size: of the image's tower.
        vision_dim: its width.
        vision_heads: None: vision_dim // 64, as CLIP.
        vocab: number of token ids.
        context: the longest text.
        text_dim: width of the text's tower.
        text_heads: its heads.
        num_layers: of both towers: the loss pairs layers.
        embed_dim: E, of the joint space.
        r_image: tokens merged away in each layer of the image's tower.
        r_text: the same for the text's.

    `encode_*` take another r, guidance (factor on the importance; 0: the cross token has no say)
    and method ("complete" | "bipartite") per call.
    """

    def __init__(
        self,
        img_size=224,
        patch_size=16,
        vision_dim=768,
        vision_heads=None,
        vocab=49408,
        context=77,
        text_dim=512,
        text_heads=8,
        num_layers=12,
        embed_dim=512,
        r_image=16,
        r_text=0,
    ):
        super().__init__()
        self.r_image, self.r_text, self.context = r_image, r_text, context
        if vision_heads is None:
            vision_heads = max(1, vision_dim // 64)
        self.visual = VisionTower(
            img_size, patch_size, vision_dim, num_layers, vision_heads, embed_dim
        )
        self.transformer = Transformer(text_dim, num_layers, text_heads, "text")
        self.token_embedding = nn.Embedding(vocab, text_dim)
        self.positional_embedding = nn.Parameter(torch.empty(context, text_dim).normal_(std=0.01))
        self.ln_final = nn.LayerNorm(text_dim)
        projection = torch.empty(text_dim, embed_dim).normal_(std=text_dim**-0.5)
        self.text_projection = nn.Parameter(projection)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for tower, dim in ((self.visual.transformer, vision_dim), (self.transformer, text_dim)):
            for block in tower.resblocks:                               # CLIP's start, of its text
                nn.init.normal_(block.attn.in_proj_weight, std=dim**-0.5)
                smaller = dim**-0.5 * (2 * num_layers) ** -0.5
                nn.init.normal_(block.attn.out_proj.weight, std=smaller)
                nn.init.normal_(block.mlp.c_fc.weight, std=(2 * dim) ** -0.5)
                nn.init.normal_(block.mlp.c_proj.weight, std=smaller)

    def encode_image(self, images, r=None, guidance=1.0, method="complete") -> Encoded:
        """images (B, 3, S, S) -> `Encoded`.

        Args:
            images: in [0, 1].
            r: tokens merged per layer; None: r_image.
            guidance: factor on the importance.
            method: of `match`.
        """
        return self.visual(images, self.r_image if r is None else r, guidance, method)

    def encode_text(self, text, r=None, guidance=1.0, method="complete") -> Encoded:
        """text (B, L) long -> `Encoded`.

        Args:
            text: token ids.
            r: tokens merged per layer; None: r_text.
            guidance: factor on the importance.
            method: of `match`.

        ValueError for a text that is not (B, L) with 2 <= L <= context.
        """
        if text.dim() != 2 or not 2 <= text.shape[1] <= self.context:
            raise ValueError(
                f"text has shape {tuple(text.shape)} but needs (B, L) token ids with "
                f"2 <= L <= {self.context}"
            )
        eot = text.argmax(dim=-1)
        x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]     # b l d
        x = torch.cat([x, take(x, eot[:, None])], dim=1)
        r = self.r_text if r is None else r
        x, size, eot, cross, plans = self.transformer(x, r, eot, guidance, method)
        feature = take(self.ln_final(x), eot[:, None])[:, 0] @ self.text_projection
        cross = _project(cross, self.ln_final, self.text_projection)
        return Encoded(feature, cross, plans, size)

    def logits(self, image_feature, text_feature):
        """exp(logit_scale), at most 100, times the cosines: (B, E), (B', E) -> (B, B')."""
        image = F.normalize(image_feature.float(), dim=-1)
        text = F.normalize(text_feature.float(), dim=-1)
        return self.logit_scale.float().clamp(0, math.log(100)).exp() * (image @ text.mT)

    def forward(self, images, text):
        return self.logits(self.encode_image(images).feature, self.encode_text(text).feature)

    def losses(self, images, text, same=None, **options) -> dict[str, Tensor]:
        """The contrastive loss "ita" and the cross tokens' "kd"; train on (1 - w) ita + w kd,
        w = 0.5 in the release.

        Args:
            images: (B, 3, S, S).
            text: (B, L) token ids.
            same: (B, B) bool, pairs that count as right ones, e.g. of equal captions; None: the
                diagonal.
            options: of `encode_image`.
        """
        image, words = self.encode_image(images, **options), self.encode_text(text)
        logits = self.logits(image.feature, words.feature)
        if same is None:
            same = torch.eye(len(logits), device=logits.device)
        goal = same.to(logits.dtype)
        goal = goal / goal.sum(1, keepdim=True)
        ita = -((logits.log_softmax(1) + logits.mT.log_softmax(1)) * goal).sum(1).mean() / 2
        return dict(ita=ita, kd=cross_loss(image.cross, words.cross))
