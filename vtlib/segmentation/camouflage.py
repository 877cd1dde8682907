"""Leveraging Open-Vocabulary Diffusion to Camouflaged Instance Segmentation (Vu, Nguyen, Guo, Hua,
Chung, Tsang, Yeung, 2023, arXiv 2312.17505).

The idea: a camouflaged animal shares colour and texture with what is around it, so looks alone
fail. The features of a frozen text-to-image diffusion model and the frozen embeddings of class
names know what such animals are; small trained modules fuse those features over scales, compare
each mask with the texts, and normalise the map so that the object comes off its background. The
class list is an input: names that training never saw can be on it.

    features of one frozen pass: encoder maps, the decoder's last map     given, as a list
    out_s = F_d + F_d * conv(concat_j resize(F_e^j))                      MSFF
    pixel decoder, queries, masked attention -> mask logits m_i           camouflage_masks
    z_i = MLP(q_i + linear(mean of the map inside m_i))                   camouflage_vocabulary
    cos(z_i, T(class)) / tau, "no object" last, the best synonym          OpenVocabulary, there
    p_k = softmax_k(2 <v, t_k>), w_k = p_k / mean p, e_k = v t_k w_k,
        S_k = sum over channels of (e_k - mean_k e)                       aggregate    (TVA)
    m_i + gain (weight_i . standardised map + bias_i)                     CIN
    L = alpha L_bce + L_dice + L_ce of matched queries                    camouflage_loss

No code of this paper is public. Known from its texts are the modules and their order, the terms of
the loss and the ablation that zeroes the texts. INFERRED, each from a close relative whose code is:
- TVA as the feature surgery of CLIP Surgery (Li and others 2023, arXiv 2304.05653);
- CIN as the dynamic camouflaged instance normalisation of OSFormer (Pei and others, ECCV 2022,
  arXiv 2207.02255), its instance embedding made by TVA;
- mask embedding and classes as in ODISE (Xu and others, CVPR 2023, arXiv 2303.04803).
CHOSEN here: how MSFF is wired, that CIN is added to the generator's logits with a small learnt
`gain`, alpha = 1, that TVA's channels are multiplied by their number before CIN reads them (they
are products of unit vectors' entries), and the pixel decoder, which is convolutions, not
deformable attention. Any list of maps will do for features: those of another frozen net too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn.checks import (
    check_axes,
    check_dtype,
    check_flag,
    check_int,
    check_ints,
    check_list,
    check_map,
    check_number,
    describe,
)
from ..tokens.cosine import unit
from ..tokens.precision import widen
from .camouflage_masks import MaskDecoder, PixelDecoder
from .camouflage_vocabulary import MaskEmbedding, OpenVocabulary, check_texts
from .oneformer_loss import JointLoss, joint_loss
from .oneformer_tasks import Targets

PAPER = "camouflaged-instance-segmentation"
LEVELS = 4


class Prediction(NamedTuple):
    """What the queries say.

    Args:
        class_logits: (B, N, K + 1), the last class is "no object".
        mask_logits: (B, N, H, W).
    """

    class_logits: Tensor
    mask_logits: Tensor


class Output(NamedTuple):
    """What a forward pass gives.

    Args:
        last: the prediction after the last layer.
        earlier: those before it, the first from the learnt queries (deep supervision).
        embeddings: z, (B, N, text_dim), unit length.
        scores: S of TVA (B, N, P): how much a mask is each of the P texts, more than the others.
        generated: mask logits before CIN, (B, N, H, W).
        normalised: what CIN says, (B, N, H, W); zeros without CIN.
    """

    last: Prediction
    earlier: list[Prediction]
    embeddings: Tensor
    scores: Tensor
    generated: Tensor
    normalised: Tensor


# --------------------------------------------------------------------------------- multi-scale maps
def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W): bilinear, and averaged over an area where it shrinks."""
    if x.shape[-2] > size[0] or x.shape[-1] > size[1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class MSFF(nn.Module):
    """Multi-scale feature fusion: the encoder's maps weigh the decoder's last map.

        F_d^s = GroupNorm(conv1x1(resize(F_d)))     A_s = conv1x1(concat_j resize(F_e^j))
        out_s = F_d^s + F_d^s * A_s                 s = 1, 1/2, 1/4, 1/8 of `size`

    The wiring is chosen here: concatenation, 1 x 1 convolution, product and sum are the paper's.

    Args:
        channels: of the encoder's maps.
        last_channels: of the decoder's last map.
        embed_dim: D of what comes out.
        groups: of GroupNorm.
    """

    def __init__(
        self, channels: Sequence[int], last_channels: int, embed_dim: int = 256, groups: int = 32
    ) -> None:
        super().__init__()
        self.channels = check_ints(channels, "channels", 1)
        self.last_channels = check_int(last_channels, "last_channels", 1)
        embed_dim, groups = check_int(embed_dim, "embed_dim", 1), check_int(groups, "groups", 1)
        if not self.channels:
            raise ValueError("channels=(): needs those of one map at least")
        if embed_dim % groups:
            raise ValueError(f"groups={groups} must divide embed_dim={embed_dim}")
        total = sum(self.channels)
        self.attend = nn.ModuleList(nn.Conv2d(total, embed_dim, 1) for _ in range(LEVELS))
        self.project = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(self.last_channels, embed_dim, 1), nn.GroupNorm(groups, embed_dim)
            )
            for _ in range(LEVELS)
        )

    def forward(
        self, encoder: Sequence[Tensor], last: Tensor, size: tuple[int, int] | None = None
    ) -> list[Tensor]:
        """Maps to four levels (B, D, h, w), finest first.

        Args:
            encoder: (B, C_j, h_j, w_j), of any sizes.
            last: (B, C_d, h, w).
            size: (H, W) of the finest level; None: that of `last`.
        """
        maps = check_list(encoder, "encoder", "a list of maps (B, C, h, w)")
        for x, name in (*((x, f"encoder[{j}]") for j, x in enumerate(maps)), (last, "last")):
            check_map(x, name)
            check_dtype(x, self.attend[0].weight, name)
        found = tuple(x.shape[1] for x in maps)
        if found != self.channels or last.shape[1] != self.last_channels:
            needs = f"{list(self.channels)} and {self.last_channels}"
            raise ValueError(f"encoder and last have {list(found)} and {last.shape[1]} channels: "
                             f"needs {needs}")
        if any(x.shape[0] != last.shape[0] for x in maps):
            batches = [x.shape[0] for x in maps]
            raise ValueError(f"encoder has {batches} pictures but last has {last.shape[0]}")
        height, width = tuple(last.shape[-2:]) if size is None else check_ints(size, "size", 1, 2)
        out = []
        for level, (attend, project) in enumerate(zip(self.attend, self.project, strict=True)):
            step = 2**level
            wanted = -(-height // step), -(-width // step)
            weight = attend(torch.cat([resize(x, wanted) for x in maps], 1))         # b d h w
            content = project(resize(last, wanted))
            out.append(content + content * weight)
        return out


# ------------------------------------------------------------------ textual-visual aggregation, TVA
class Aggregated(NamedTuple):
    """What `aggregate` gives.

    Args:
        products: e - r, (B, X, K, C): before the sum over channels.
        scores: S (B, X, K); over classes they sum to 0.
        weights: w (B, X or 1, K), mean 1.
    """

    products: Tensor
    scores: Tensor
    weights: Tensor


def aggregate(
    visual: Tensor, text: Tensor, overall: Tensor | None = None, remove_mean: bool = True
) -> Aggregated:
    """Textual-visual aggregation: what a place has in common with one text and not with all.

        p_k = softmax_k(2 <o, t_k>)   w_k = p_k / mean_k p_k   e_{x,k} = v_x t_k w_k (per channel)
        r_x = mean_k e_{x,k}          S_{x,k} = sum over channels of (e_{x,k} - r_x)

    The mean over classes, r, is what all texts share: background and noise. So S depends on the
    whole list of classes, and with one class it is 0: name others too.

    Args:
        visual: v (B, X, C), unit vectors of places or masks.
        text: t (K, C), unit vectors.
        overall: o, (B, 1, C) or (B, X, C), whose likeness weighs the classes; None: v itself.
        remove_mean: False leaves r in (an ablation).
    """
    check_axes(visual, "visual", "(B, X, C)")
    check_texts(text, visual.shape[2], None)
    text = text.to(visual.dtype)
    overall = visual if overall is None else overall
    check_axes(overall, "overall", "(B, X, C)")
    if overall.shape[1] not in (1, visual.shape[1]) or overall.shape[::2] != visual.shape[::2]:
        shapes = f"{tuple(overall.shape)} and visual {tuple(visual.shape)}"
        raise ValueError(f"overall has shape {shapes}: needs the same B and C, and 1 or X places")
    share = (2 * overall @ text.T).softmax(-1)                                       # b x k
    weights = share / share.mean(-1, keepdim=True)
    products = visual[:, :, None] * text * weights[..., None]                        # b x k c
    if check_flag(remove_mean, "remove_mean"):
        products = products - products.mean(2, keepdim=True)
    return Aggregated(products, products.sum(-1), weights)


# ------------------------------------------------------- camouflaged instance normalisation, CIN
def standardise(x: Tensor, eps: float = 1e-10) -> Tensor:
    """(B, C, H, W): each channel to mean 0 and variance 1 over the WHOLE picture."""
    wide = widen(x)
    variance, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
    return ((wide - mean) * (variance + eps).rsqrt()).to(x.dtype)


class CIN(nn.Module):
    """Each instance's own affine map of the standardised features, summed to one logit.

        mask_i = (W a_i + b) . (x - mean x) / std x + (u . a_i + c)

    Mean and deviation are over all pixels, so a gain and an offset of a channel change nothing:
    with little contrast the object is as far from the ground as with much. OSFormer's names.

    Args:
        embed_dim: C of the map.
        instance_dim: of a; None: C.
        normalise: False leaves x as it is (an ablation).
        eps: added to the variance.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        instance_dim: int | None = None,
        normalise: bool = True,
        eps: float = 1e-10,
    ) -> None:
        super().__init__()
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        given = embed_dim if instance_dim is None else check_int(instance_dim, "instance_dim", 1)
        self.affine_scale = nn.Linear(given, embed_dim)
        self.affine_bias = nn.Linear(given, 1)
        self.normalise = check_flag(normalise, "normalise")
        self.eps = check_number(eps, "eps", above=0)

    def forward(self, features: Tensor, instances: Tensor) -> Tensor:
        """features (B, C, H, W), instances (B, N, instance_dim) -> mask logits (B, N, H, W)."""
        check_map(features, "features")
        check_axes(instances, "instances", "(B, N, A)")
        if features.shape[1] != self.affine_scale.out_features:
            needs = self.affine_scale.out_features
            raise ValueError(f"features is {describe(features)} but needs {needs} channels")
        if instances.shape[2] != self.affine_scale.in_features:
            needs = self.affine_scale.in_features
            raise ValueError(f"instances is {describe(instances)} but needs {needs} channels")
        x = standardise(features, self.eps) if self.normalise else features
        weight, bias = self.affine_scale(instances), self.affine_bias(instances)
        return torch.einsum("bnc,bchw->bnhw", weight, x) + bias[..., None]


# --------------------------------------------------------------------------------------- the whole
class CamouflageSegmenter(nn.Module):
    """The trained part: maps of a frozen net and texts of a frozen encoder to masks and classes.

    Args:
        channels: of the maps in the list.
        last_channels: of the last map.
        text_dim: of texts.
        embed_dim: D of everything between.
        num_queries: N.
        num_layers: of the masked decoder.
        num_heads: must divide D.
        hidden_dim: of its feed-forward nets.
        groups: of GroupNorm, must divide D.
        cin: whether there is CIN; False is an ablation, as the next two.
        remove_mean: of `aggregate`.
        normalise: of `CIN`.
        gain: what CIN's logits are multiplied by at first; learnt.
    """

    def __init__(
        self,
        channels: Sequence[int],
        last_channels: int,
        text_dim: int = 768,
        embed_dim: int = 256,
        num_queries: int = 100,
        num_layers: int = 9,
        num_heads: int = 8,
        hidden_dim: int = 2048,
        groups: int = 32,
        cin: bool = True,
        remove_mean: bool = True,
        normalise: bool = True,
        gain: float = 0.1,
    ) -> None:
        super().__init__()
        self.fusion = MSFF(channels, last_channels, embed_dim, groups)
        self.pixels = PixelDecoder(embed_dim, groups)
        self.decoder = MaskDecoder(embed_dim, num_queries, num_layers, num_heads, hidden_dim)
        self.embedding = MaskEmbedding(embed_dim, text_dim)
        self.vocabulary = OpenVocabulary(text_dim)
        self.text_dim = check_int(text_dim, "text_dim", 1)
        self.remove_mean = check_flag(remove_mean, "remove_mean")
        self.cin = CIN(embed_dim, text_dim, normalise) if check_flag(cin, "cin") else None
        if self.cin is not None:
            self.gain = nn.Parameter(torch.tensor(check_number(gain, "gain")))

    def forward(
        self,
        encoder: Sequence[Tensor],
        last: Tensor,
        text: Tensor,
        synonyms: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Output:
        """Features and a class list to predictions.

        Args:
            encoder: maps (B, C_j, h_j, w_j) of the frozen net.
            last: (B, C_d, h, w), its last map; the last of the list, where there is no other.
            text: (P, text_dim), of the class list; zeros: without text.
            synonyms: see `OpenVocabulary`.
            size: of the masks; None: that of `last`.
        """
        check_texts(text, self.text_dim, synonyms)
        levels, features = self.pixels(self.fusion(encoder, last, size))
        rows = unit(text).to(features.dtype)
        spoken: list[tuple[Prediction, Tensor, Tensor, Tensor, Tensor]] = []

        def predict(queries: Tensor, mask_logits: Tensor) -> Tensor:
            z = unit(self.embedding(queries, features, mask_logits)).to(features.dtype)  # b n c
            classes = self.vocabulary(z, text, synonyms)
            found = aggregate(z, rows, remove_mean=self.remove_mean)
            extra = self._normalised(features, found, mask_logits, z @ rows.T)
            masks = mask_logits if self.cin is None else mask_logits + self.gain * extra
            spoken.append((Prediction(classes, masks), z, found.scores, mask_logits, extra))
            return masks

        self.decoder(levels, features, predict)
        return Output(spoken[-1][0], [each[0] for each in spoken[:-1]], *spoken[-1][1:])

    def _normalised(
        self, features: Tensor, found: Aggregated, mask_logits: Tensor, likeness: Tensor
    ) -> Tensor:
        """CIN's logits, from e - r of the text that each mask is most like.

        Args:
            features: (B, D, H, W).
            found: of `aggregate`.
            mask_logits: (B, N, H, W).
            likeness: (B, N, P) cosines.
        """
        if self.cin is None:
            return torch.zeros_like(mask_logits)
        best = likeness.argmax(-1)[..., None, None]                                  # b n 1 1
        index = best.expand(*best.shape[:3], self.text_dim)
        products = found.products.gather(2, index)[:, :, 0]                          # b n c
        return self.cin(features, (self.text_dim * products).to(features.dtype))

    def heat(self, out: Output) -> Tensor:
        """Where each text is (B, P, H, W): the scores S of masks, weighed by what says that a query
        is an object and that the pixel is in its mask."""
        object_share = 1 - out.last.class_logits.softmax(-1)[..., -1]                # b n
        inside = out.last.mask_logits.sigmoid() * object_share[..., None, None]
        return torch.einsum("bnhw,bnp->bphw", inside, out.scores)


def camouflage_loss(
    out: Output, targets: Sequence[Targets], alpha: float = 1.0, weights: Sequence[float] = (1, 1)
) -> JointLoss:
    """L = alpha L_bce + L_dice + L_ce of matched queries, of every layer, each matched anew.

    Unmatched queries are to say "no object", with a weight of 0.1. The paper's alpha is not known.

    Args:
        out: of `CamouflageSegmenter`.
        targets: of each picture, masks as large as the mask logits.
        alpha: of BCE.
        weights: of classes and Dice.
    """
    classes, dice = (check_number(w, f"weights[{i}]", 0) for i, w in enumerate(weights))
    parts = (classes, check_number(alpha, "alpha", 0), dice, 0.0)
    return joint_loss([*out.earlier, out.last], targets, num_points=None, weights=parts)


def foreground(out: Output, size: tuple[int, int] | None = None) -> Tensor:
    """Probability that a pixel is of any object (B, H, W): the surest query's.

    Args:
        out: of `CamouflageSegmenter`.
        size: (H, W); None: that of the masks.
    """
    logits = out.last.mask_logits
    if size is not None:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    object_share = 1 - out.last.class_logits.softmax(-1)[..., -1]
    return rearrange(object_share, "b n -> b n 1 1").mul(logits.sigmoid()).amax(1)
