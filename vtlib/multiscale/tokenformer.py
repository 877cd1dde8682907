"""TokenFormer - Rethinking Transformer Scaling with Tokenized Model Parameters (Wang et al., ICLR
2025, arXiv 2410.23168).

The idea: a linear layer ties the number of parameters to the width of the tokens, so a larger model
means training again. TokenFormer replaces every linear projection by attention of the input tokens
over n learnable key-value pairs, the parameter tokens; n is free of both widths. A trained model is
enlarged by appending pairs: zero keys and a fixed scale leave its function exactly as it was.

    Pattention(X, K_P, V_P) = Theta(X K_P^T) V_P       Pattention          (paper eq. 4, 5)
    Theta(A) = GELU(tau * A / ||A||_2), tau = sqrt(n)  modified_softmax    (eq. 5; the norm runs
                                                                            over the n tokens)
    x + MHA with four Pattentions; x + Pattention      TokenFormerBlock    (eq. 6 - 8)
    [K_P; K_new], [V_P; V_new]                         .grow               (eq. 9 and App. B)

State-dict names of a layer are the official ones (Haiyang-W/TokenFormer):
attention.{query,key,value,proj}.{key,value}_param_tokens and mlp.{key,value}_param_tokens. Followed
from the code: no 1/sqrt(d) on the scores, normalise first and GELU after, no biases, LayerNorm
without weights, rotary on the first quarter of each head (language).

Different from the official code: the norm is bounded below by 1e-5, so an input orthogonal to all
keys gives 0 (NaN in the torch code, which is matched everywhere else; the authors' JAX code adds
1e-5 to every norm instead, a relative change below 1e-5 / ||a||); tau is a stored buffer, so that
growing keeps it, as App. B asks (the torch code recomputes sqrt(n) and thereby changes the
function). The vision model is inferred: its code is not released.
"""

import re

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from ..nn import (
    PatchEmbed,
    apply_rope,
    attend,
    check_dtype,
    check_float,
    check_heads,
    check_int,
    check_number,
    check_tokens,
    resize_pos_embed,
    rope_1d,
    unwrap,
)
from ..nn.checks import at_hand, check_flag, check_generator, check_index, check_range, describe

PAPER = "tokenformer"

NORMS = ("l2_norm_gelu", "gelu_l2_norm", "softmax")
STARTS = ("zero", "random", "dead")
EPS = 1e-5


def modified_softmax(scores, tau, kind="l2_norm_gelu"):
    """Theta of eq. 5 on scores (..., n), over the last axis. GELU is the exact one (erf).

    Args:
        scores: a.
        tau: the scale, sqrt(n) unless the layer has grown.
        kind: "l2_norm_gelu" (the paper's): GELU(tau * a / max(||a||, 1e-5)); "gelu_l2_norm":
            tau * b / max(||b||, 1e-5), b = GELU(a); "softmax": tau^2 * softmax(a), so that the
            weights sum to n.
    """
    check_float(scores, "scores")
    tau = tau if isinstance(tau, torch.Tensor) else check_number(tau, "tau")
    if kind == "l2_norm_gelu":
        return F.gelu(tau * F.normalize(scores, dim=-1, eps=EPS))
    if kind == "gelu_l2_norm":
        return tau * F.normalize(F.gelu(scores), dim=-1, eps=EPS)
    if kind == "softmax":
        return tau**2 * scores.softmax(dim=-1)
    raise ValueError(f"kind={kind!r} must be one of {NORMS}")


def _root(num_tokens, like):
    """sqrt(n) as a 0-dim tensor, in float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.tensor(num_tokens**0.5, dtype=dtype, device=like.device)


def _check_mask(mask, shape):
    """Raise unless `mask` is a tensor that is broadcast to scores of this shape."""
    fits = isinstance(mask, torch.Tensor) and mask.dim() <= len(shape)
    tail = shape[len(shape) - mask.dim() :] if fits else ()
    if not fits or any(have not in (1, want) for have, want in zip(mask.shape, tail, strict=True)):
        raise ValueError(
            f"mask is {describe(mask)} but needs to be a tensor that is broadcast to "
            f"{tuple(shape)}"
        )


class Pattention(nn.Module):
    """Token-parameter attention, a drop-in for a linear layer without bias.

    (..., in_dim) -> (..., out_dim).

    Args:
        in_dim: channels of the input, and of the keys.
        out_dim: channels of the result, and of the values.
        num_tokens: n.
        kind: of `modified_softmax`.
        value_std: standard deviation of the initial values (keys: 0.02); None: out_dim^-0.5.
        scale: on the raw scores.
    """

    def __init__(
        self, in_dim, out_dim, num_tokens, kind="l2_norm_gelu", value_std=None, scale=1.0
    ):
        super().__init__()
        if kind not in NORMS:
            raise ValueError(f"kind={kind!r} must be one of {NORMS}")
        in_dim, out_dim = check_int(in_dim, "in_dim", 1), check_int(out_dim, "out_dim", 1)
        num_tokens = check_int(num_tokens, "num_tokens", 1)
        self.kind, self.scale = kind, check_number(scale, "scale")
        value_std = out_dim**-0.5 if value_std is None else value_std
        self.value_std = check_number(value_std, "value_std", 0)
        keys = torch.empty(num_tokens, in_dim).normal_(std=0.02)
        values = torch.empty(num_tokens, out_dim).normal_(std=self.value_std)
        self.key_param_tokens = nn.Parameter(keys)
        self.value_param_tokens = nn.Parameter(values)
        self.register_buffer("tau", _root(num_tokens, keys), persistent=False)

    @property
    def num_tokens(self):
        return self.key_param_tokens.shape[0]

    def weights(self, x, mask=None, index=None):
        """Theta(x K^T): how much each parameter token is used, (..., n).

        Args:
            x: (..., in_dim).
            mask: see `forward`.
            index: see `forward`.
        """
        check_float(x, "x")
        check_dtype(x, self.key_param_tokens, "x")
        keys, tau = self.key_param_tokens, self.tau
        if x.dim() < 1 or x.shape[-1] != keys.shape[1]:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but the keys need (..., in_dim={keys.shape[1]})"
            )
        if index is not None:
            check_index(index, "index", "(k,)", stop=self.num_tokens)
            keys, tau = keys[index], index.shape[0] ** 0.5
        scores = (x @ keys.t()) * self.scale                                     # ... n
        if mask is not None:
            _check_mask(mask, scores.shape)
            scores = scores * mask.to(scores.dtype)
        return modified_softmax(scores, tau, self.kind)

    def forward(self, x, mask=None, index=None):
        """x: (..., in_dim) -> (..., out_dim).

        Args:
            x: the tokens.
            mask: boolean, broadcastable to (..., n), True = visible: hidden scores become 0 before
                the norm, tau stays.
            index: (k,) long, use only these parameter tokens; tau becomes sqrt(k).
        """
        weights = self.weights(x, mask, index)
        values = self.value_param_tokens if index is None else self.value_param_tokens[index]
        return weights @ values

    @torch.no_grad()
    def grow(self, num_new, init="zero", keep_tau=True, generator=None):
        """Append num_new pairs, in place (make the optimizer after growing). Returns self.

        Args:
            num_new: how many.
            init: "zero": zero keys, random values; with keep_tau=True the output does not change at
                all, and the new keys get gradients at once (the new values from the second step
                on). "random": random keys too. "dead": keys and values zero, which never learn; for
                demonstration.
            keep_tau: False sets tau = sqrt(n + num_new), as the released torch code does: that
                rescales all old scores.
            generator: of the random numbers.
        """
        num_new = check_int(num_new, "num_new", 1)
        if not isinstance(init, str) or init not in STARTS:
            raise ValueError(f"init={init!r} must be one of {STARTS}")
        keep_tau = check_flag(keep_tau, "keep_tau")
        check_generator(generator, optional=True)
        device = "cpu" if generator is None else generator.device

        def fresh(old, std):
            if not std:
                return old.new_zeros(num_new, old.shape[1])
            shape = (num_new, old.shape[1])
            drawn = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
            return (drawn * std).to(old)

        keys, values = self.key_param_tokens, self.value_param_tokens
        new_keys = fresh(keys, 0.02 if init == "random" else 0)
        new_values = fresh(values, 0 if init == "dead" else self.value_std)
        self.key_param_tokens = nn.Parameter(torch.cat([keys, new_keys]))
        self.value_param_tokens = nn.Parameter(torch.cat([values, new_values]))
        if not keep_tau:
            self.tau = _root(self.num_tokens, keys)
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """tau is saved only when growth made it differ from sqrt(n).

        An ungrown layer keeps the official two keys.
        """
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.tau.is_meta and abs(self.tau.item() ** 2 - self.num_tokens) > 1e-3:
            destination[prefix + "tau"] = self.tau.detach().clone()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Take over the number of pairs of the checkpoint, and its tau if it has one."""
        for name in ("key_param_tokens", "value_param_tokens"):
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is None or saved.shape == own.shape:
                continue
            if saved.shape[1:] == own.shape[1:]:
                setattr(self, name, nn.Parameter(own.new_zeros(saved.shape)))
        tau = state_dict.pop(prefix + "tau", None)
        keys = self.key_param_tokens
        self.tau = _root(self.num_tokens, keys) if tau is None else tau.to(keys.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class TokenFormerAttention(nn.Module):
    """Multi-head attention whose four projections are Pattentions.

    The token-token part is ordinary attention.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        qkv_tokens: parameter tokens of each of query, key, value.
        proj_tokens: of the output projection.
        rotary: share of each head that turns with the position.
        causal: whether a token sees only those before it, and itself.
        pattention: further arguments of `Pattention`.
    """

    def __init__(
        self,
        embed_dim,
        num_heads,
        qkv_tokens,
        proj_tokens,
        rotary=0.0,
        causal=False,
        **pattention,
    ):
        super().__init__()
        head_dim = check_heads(embed_dim, num_heads)
        self.num_heads, self.causal = int(num_heads), check_flag(causal, "causal")
        self.rotary_dim = int(head_dim * check_number(rotary, "rotary", 0, 1))
        self.query = Pattention(embed_dim, embed_dim, qkv_tokens, **pattention)
        self.key = Pattention(embed_dim, embed_dim, qkv_tokens, **pattention)
        self.value = Pattention(embed_dim, embed_dim, qkv_tokens, **pattention)
        self.proj = Pattention(embed_dim, embed_dim, proj_tokens, **pattention)

    def forward(self, x, return_attn=False):
        """x: (B, N, D) -> (B, N, D); with return_attn=True also the weights (B, heads, N, N)."""
        check_tokens(x, name="x")
        num_tokens = x.shape[1]
        projected = (layer(x) for layer in (self.query, self.key, self.value))
        q, k, v = (rearrange(t, "b n (h p) -> b h n p", h=self.num_heads) for t in projected)
        if self.rotary_dim:
            tables = rope_1d(num_tokens, self.rotary_dim, device=x.device)
            q, k = apply_rope(q, *tables), apply_rope(k, *tables)
        mask = None
        if self.causal:
            mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=x.device).tril()
        out = attend(q, k, v, mask, return_attn)
        out, attn = out if return_attn else (out, None)
        out = self.proj(rearrange(out, "b h n p -> b n (h p)"))
        return (out, attn) if return_attn else out


class TokenFormerBlock(nn.Module):
    """x = x + attention(LN(x)); x = x + Pattention(LN(x)).

    LN has no weights; the feed-forward part is one single Pattention.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        qkv_tokens: parameter tokens of each query, key, value.
        proj_tokens: of the output projection; None: qkv_tokens.
        ffn_tokens: of the feed-forward part; None: 4 qkv_tokens.
        rotary: share of each head that turns with the position.
        causal: whether a token sees only those before it, and itself.
        eps: of the norms.
        pattention: further arguments of `Pattention`.
    """

    def __init__(
        self,
        embed_dim,
        num_heads,
        qkv_tokens,
        proj_tokens=None,
        ffn_tokens=None,
        rotary=0.0,
        causal=False,
        eps=1e-5,
        **pattention,
    ):
        super().__init__()
        qkv_tokens = check_int(qkv_tokens, "qkv_tokens", 1)
        proj_tokens = qkv_tokens if proj_tokens is None else proj_tokens
        proj_tokens = check_int(proj_tokens, "proj_tokens", 1)
        ffn_tokens = 4 * qkv_tokens if ffn_tokens is None else ffn_tokens
        ffn_tokens = check_int(ffn_tokens, "ffn_tokens", 1)
        self.eps = eps
        self.attention = TokenFormerAttention(
            embed_dim, num_heads, qkv_tokens, proj_tokens, rotary, causal, **pattention
        )
        self.mlp = Pattention(embed_dim, embed_dim, ffn_tokens, **pattention)

    def forward(self, x, return_attn=False):
        check_tokens(x, name="x")
        y = self.attention(F.layer_norm(x, x.shape[-1:], eps=self.eps), return_attn)
        y, attn = y if return_attn else (y, None)
        x = x + y
        x = x + self.mlp(F.layer_norm(x, x.shape[-1:], eps=self.eps))
        return (x, attn) if return_attn else x


class _Tokenformer(nn.Module):
    """The stack both models share: blocks, final LayerNorm without weights, growth."""

    def _build(self, embed_dim, num_layers, num_heads, num_tokens, ffn_tokens, kind, **attention):
        num_layers = check_int(num_layers, "num_layers", 1)
        num_tokens = check_int(num_tokens, "num_tokens", 1)
        value_std = 2 / num_layers / embed_dim**0.5
        sizes = embed_dim, num_heads, num_tokens, num_tokens, ffn_tokens
        self.blocks = nn.ModuleList(
            TokenFormerBlock(*sizes, kind=kind, value_std=value_std, **attention)
            for _ in range(num_layers)
        )

    def _run(self, x):
        for block in self.blocks:
            x = block(x)
        return F.layer_norm(x, x.shape[-1:], eps=1e-5)

    def grow(self, num_new, init="zero", keep_tau=True, generator=None):
        """Append pairs to every Pattention of every layer. Returns self.

        Make a new optimizer afterwards.

        Args:
            num_new: for each of the four Pattentions of an attention; the feed-forward one gets
                4 * num_new.
            init: see `Pattention.grow`.
            keep_tau: see `Pattention.grow`.
            generator: of the random numbers.
        """
        num_new = check_int(num_new, "num_new", 1)
        for block in self.blocks:
            attn = block.attention
            for layer in (attn.query, attn.key, attn.value, attn.proj):
                layer.grow(num_new, init, keep_tau, generator)
            block.mlp.grow(4 * num_new, init, keep_tau, generator)
        return self


class TokenFormer(_Tokenformer):
    """Language model: ids (B, T) long -> logits (B, T, vocab_size).

    Causal, tied embedding. Defaults are the 150M model (App. table 9).

    Args:
        vocab_size: how many ids there are.
        embed_dim: D.
        num_layers: how many layers.
        num_heads: must divide D.
        num_tokens: n of the attention Pattentions.
        ffn_tokens: of the feed-forward ones; None: 4 n.
        rotary: share of each head that turns with the position.
        kind: of `modified_softmax`.
    """

    def __init__(
        self,
        vocab_size=50304,
        embed_dim=768,
        num_layers=12,
        num_heads=12,
        num_tokens=768,
        ffn_tokens=None,
        rotary=0.25,
        kind="l2_norm_gelu",
    ):
        super().__init__()
        vocab_size = check_int(vocab_size, "vocab_size", 1)
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        sizes = embed_dim, num_layers, num_heads, num_tokens, ffn_tokens
        self._build(*sizes, kind, rotary=rotary, causal=True)

    def forward(self, ids):
        _check_ids(ids, self.embedding.num_embeddings)
        return self._run(self.embedding(ids)) @ self.embedding.weight.t()


def _check_ids(ids, vocab_size):
    """Raise unless ids (B, T) are integers, 0 ... vocab_size - 1 where they can be read."""
    if not isinstance(ids, torch.Tensor) or ids.dtype not in (torch.int32, torch.int64):
        kind = ids.dtype if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(f"ids is {kind} but needs to be a torch.int64 tensor (B, T)")
    if ids.dim() != 2 or 0 in ids.shape:
        raise ValueError(
            f"ids has shape {tuple(ids.shape)} but needs (B, T) with at least one token"
        )
    if at_hand(ids):
        check_range(ids, "ids", 0, vocab_size)


class TokenFormerViT(_Tokenformer):
    """Vision model: images (B, in_chans, H, W) -> logits (B, num_classes).

    As a ViT ([CLS], learned positions) with TokenFormer blocks. Patch embedding and head stay
    linear (inferred: the vision code is not released). Defaults are Base-dagger (86 M parameters).

    Args:
        img_size: side that the positions are made for.
        patch_size: P.
        in_chans: channels of the images.
        num_classes: 0: no head, features of [CLS] come out.
        embed_dim: D.
        num_layers: how many layers.
        num_heads: must divide D.
        num_tokens: n of the attention Pattentions.
        ffn_tokens: of the feed-forward ones; None: 4 n.
        kind: of `modified_softmax`.
    """

    def __init__(
        self,
        img_size=224,
        patch_size=16,
        in_chans=3,
        num_classes=1000,
        embed_dim=768,
        num_layers=12,
        num_heads=12,
        num_tokens=576,
        ffn_tokens=None,
        kind="l2_norm_gelu",
    ):
        super().__init__()
        img_size = check_int(img_size, "img_size", 1)
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        num_classes = check_int(num_classes, "num_classes", 0)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.grid = self.patch_embed.grid(img_size, img_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], embed_dim))
        self._build(embed_dim, num_layers, num_heads, num_tokens, ffn_tokens, kind)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        for weight in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(weight, std=0.02)

    def tokens(self, images):
        """All tokens after the last LayerNorm: (B, 1 + N, D), [CLS] first."""
        x = self.patch_embed(images)
        cls = repeat(self.cls_token, "1 1 d -> b 1 d", b=x.shape[0])
        x = torch.cat([cls.to(x.dtype), x], dim=1)
        grid = self.patch_embed.grid(*images.shape[-2:])
        return self._run(x + resize_pos_embed(self.pos_embed, self.grid, grid))

    def forward(self, images):
        return self.head(self.tokens(images)[:, 0])


_LAYER = re.compile(
    r"(?:.*\.)?(\d+)\.((?:attention\.(?:query|key|value|proj)|mlp)\.(?:key|value)_param_tokens)"
)


def convert_official(state_dict):
    """A released checkpoint (GPT-NeoX pipeline) -> the names of `TokenFormer`.

    The stages of the pipeline are numbered through, so layers are found by their Pattentions and
    numbered anew from 0. The embedding is `word_embeddings.weight`; a copy of it (the tied output)
    and buffers of the rotary positions are dropped, a wrapping key "module" is opened. Build the
    model with vocab_size=len(embedding.weight): the files may pad the vocabulary. Raises ValueError
    when there is neither. Inferred from the code that writes these files: no released file has been
    read here.
    """
    state_dict = unwrap(state_dict, "state_dict")
    matches = {key: _LAYER.fullmatch(key) for key in state_dict}
    found = {key: (int(match[1]), match[2]) for key, match in matches.items() if match}
    embeddings = sorted(key for key in state_dict if key.endswith("word_embeddings.weight"))
    if not found or not embeddings:
        raise ValueError(
            "state_dict holds no *_param_tokens or no word_embeddings.weight: "
            "not a TokenFormer language model"
        )
    stages = sorted({stage for stage, _ in found.values()})
    out = {"embedding.weight": state_dict[embeddings[0]].float()}
    for key, (stage, name) in found.items():
        out[f"blocks.{stages.index(stage)}.{name}"] = state_dict[key].float()
    return out


def _official(embed_dim, num_layers, num_heads, num_tokens):
    def build(**kwargs):
        sizes = dict(
            embed_dim=embed_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            num_tokens=num_tokens,
        )
        return TokenFormer(**{**sizes, **kwargs})

    return build


# Official language models (App. table 9), and the series that grows out of one model at D = 768.
tokenformer_150m = _official(768, 12, 12, 768)
tokenformer_450m = _official(1024, 24, 16, 1024)
tokenformer_900m = _official(1280, 32, 16, 1280)
tokenformer_1_5b = _official(1536, 40, 16, 1536)
tokenformer_124m = _official(768, 12, 12, 576)
tokenformer_354m = _official(768, 12, 12, 2140)
tokenformer_757m = _official(768, 12, 12, 4850)
tokenformer_1_4b = _official(768, 12, 12, 8620)
