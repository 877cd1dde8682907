"""An image encoder and a text encoder with one space for both: CLIP (Radford and others, ICML 2021,
arXiv 2103.00020).

    logits = s image(x) text(t)^T, s = min(exp(learnt), 100)      ImageText.forward
    loss: cross-entropy along rows and columns                    contrast
      several captions may be right for a picture: UniCL (Yang and others, CVPR 2022,
      arXiv 2204.03610)

It is trained on whole pictures: [CLS] meets the text. Patches and regions come into the same space
by one of these, all of frozen weights:

    ImageText.dense    "value": the last block without its attention, every patch keeps what it
                       would have said to others: x + proj(v), then the MLP (MaskCLIP, Zhou and
                       others, ECCV 2022, arXiv 2112.01071)
                       "hidden": patch tokens as they come out
    ImageText.region   "mask": in the last blocks a copy of [CLS] for each region attends to its
                       patches only, and nobody to it (`nn.region_tokens`)
                       "mean": mean of dense features, the plain way
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import Block, region_tokens
from ..nn.checks import check_images, check_int, check_multiple, describe
from ..vit import ViT

DENSE = ("value", "hidden")
REGION = ("mask", "mean")


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list. ValueError unless it is a sequence of strings, at least one."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        raise ValueError(f"texts={texts!r} needs to be a list of at least one str")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts={list(texts)!r}: every one needs to be a str")
    return list(texts)


def split_words(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return re.findall(r"[a-z0-9]+", text.lower())


class WordText(nn.Module):
    """Texts to vectors (K, D): words, positions, transformer blocks, the mean over words.

    A word that it does not know is one and the same unknown word. Length is counted in words; what
    is too long is a ValueError.

    Args:
        words: that it knows, in the order of their ids, from 2; 0 pads, 1 is any other word.
        embed_dim: D.
        num_layers: blocks.
        num_heads: must divide D.
        context: most words of a text.
    """

    def __init__(
        self,
        words: Sequence[str],
        embed_dim: int = 96,
        num_layers: int = 2,
        num_heads: int = 3,
        context: int = 16,
    ) -> None:
        super().__init__()
        self.words, self.context = list(words), check_int(context, "context", 1)
        self.ids = {word: number for number, word in enumerate(self.words, start=2)}
        if len(self.ids) < len(self.words):
            raise ValueError("words has one word twice")
        self.dim = check_int(embed_dim, "embed_dim", 1)
        self.embedding = nn.Embedding(len(self.words) + 2, self.dim)
        self.positions = nn.Parameter(torch.empty(self.context, self.dim))
        num_layers = check_int(num_layers, "num_layers", 0)
        self.blocks = nn.ModuleList(Block(self.dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(self.dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.normal_(self.positions, std=0.01)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Ids (K, L), zeros behind, where the weights are. ValueError for a text without any word
        or with too many."""
        rows = [[self.ids.get(word, 1) for word in split_words(t)] for t in check_texts(texts)]
        for text, row in zip(texts, rows, strict=True):
            if not 1 <= len(row) <= self.context:
                raise ValueError(f"{text!r} has {len(row)} words: needs 1 ... {self.context}")
        longest = max(map(len, rows))
        padded = [row + [0] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, device=self.positions.device)

    def known(self, text: str) -> bool:
        """Whether it knows every word of the text."""
        return all(word in self.ids for word in split_words(text))

    def forward(self, texts: Sequence[str]) -> Tensor:
        """K texts -> (K, D)."""
        ids = self.encode(texts)
        there = ids > 0                                                          # k l
        x = self.embedding(ids) + self.positions[: ids.shape[1]]                 # k l d
        for block in self.blocks:
            x = block(x, bias=there[:, None, None])
        x = self.norm(x) * there[..., None]
        return x.sum(1) / there.sum(1, keepdim=True)


class ImageText(nn.Module):
    """Two towers: `text`, any module from a list of str to (K, text.dim), and a ViT.

    Everything that comes out of `image`, `text_vectors`, `dense` and `region` has D_joint channels
    and unit length, so that a product is a cosine.

    Args:
        text: the tower of texts: `WordText`, or a frozen one (`vtlib.hub.MiniLMText`).
        img_size: side of the images that the ViT's positions are made for.
        patch_size: P.
        embed_dim: D of the ViT.
        num_layers: blocks of the ViT, at least 1.
        num_heads: of the ViT.
        joint_dim: D_joint.
    """

    def __init__(
        self,
        text: nn.Module,
        img_size: int = 64,
        patch_size: int = 8,
        embed_dim: int = 96,
        num_layers: int = 4,
        num_heads: int = 3,
        joint_dim: int = 64,
    ) -> None:
        super().__init__()
        num_layers = check_int(num_layers, "num_layers", 1)
        self.text, self.patch_size = text, check_int(patch_size, "patch_size", 1)
        self.joint_dim = check_int(joint_dim, "joint_dim", 1)
        self.vit = ViT(
            img_size=img_size,
            patch_size=patch_size,
            num_classes=0,
            embed_dim=embed_dim,
            num_layers=num_layers,
            num_heads=num_heads,
        )
        self.image_proj = nn.Linear(embed_dim, joint_dim, bias=False)
        self.text_proj = nn.Linear(text.dim, joint_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())

    def image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], sides multiples of P -> (B, D_joint)."""
        self._check(images)
        return self._joint(self.vit.tokens(images)[:, 0])

    def text_vectors(
        self, texts: Sequence[str], templates: Sequence[str] = ("{}",)
    ) -> Tensor:
        """K texts -> (K, D_joint).

        Args:
            texts: names of classes, or whole captions.
            templates: each text is put into each of them, "a photo of a {}"; their unit vectors are
                averaged.
        """
        texts = check_texts(texts)
        if not all("{}" in template for template in check_texts(templates)):
            raise ValueError(f"templates={list(templates)!r}: each needs a place {{}}")
        ways = [
            self._unit(self.text_proj(self.text([t.replace("{}", text) for text in texts])))
            for t in templates
        ]
        return self._unit(torch.stack(ways).mean(0))

    def forward(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Logits (B, K) of each picture with each text."""
        scale = self.logit_scale.exp().clamp(max=100)
        return scale * self.image(images) @ self.text_vectors(texts).mT

    def dense(self, images: Tensor, how: str = "value") -> Tensor:
        """A vector for each patch, (B, h, w, D_joint).

        Args:
            images: (B, 3, H, W).
            how: "value" or "hidden", see the file's first lines.
        """
        if how not in DENSE:
            raise ValueError(f"how={how!r} must be one of {DENSE}")
        self._check(images)
        x, _ = self.vit.embed(images)                                            # b 1+n d
        for block in self.vit.blocks[:-1]:
            x = block(x)
        last = self.vit.blocks[-1]
        if how == "hidden":
            x = last(x)
        else:
            value = last.attn.qkv(last.norm1(x)).chunk(3, dim=-1)[2]
            x = x + last.attn.proj(value)
            x = x + last.mlp(last.norm2(x))
        height, width = (side // self.patch_size for side in images.shape[-2:])
        joint = self._joint(self.vit.norm(x[:, 1:]))
        return rearrange(joint, "b (h w) d -> b h w d", h=height, w=width)

    def region(
        self, images: Tensor, masks: Tensor, how: str = "mask", blocks: int | None = None
    ) -> Tensor:
        """A vector for each region, (B, M, D_joint); zeros for a region without a patch.

        Args:
            images: (B, 3, H, W).
            masks: (B, M, h, w) bool, patches of each region.
            how: "mask" or "mean", see the file's first lines.
            blocks: with "mask": how many of the last blocks the copies of [CLS] go through. None:
                all, which names regions best in `image_text_emoji` (data/README.md).
        """
        if how not in REGION:
            raise ValueError(f"how={how!r} must be one of {REGION}")
        self._check(images)
        grid = tuple(side // self.patch_size for side in images.shape[-2:])
        good = isinstance(masks, Tensor) and masks.dtype == torch.bool and masks.dim() == 4
        if not good or masks.shape[2:] != grid:
            raise ValueError(f"masks is {describe(masks)}: needs bool (B, M, {grid[0]}, {grid[1]})")
        if len(masks) != len(images):
            raise ValueError(f"{len(images)} images but {len(masks)} masks")
        inside = masks.flatten(2)                                                # b m n
        if how == "mean":
            dense = self.dense(images).flatten(1, 2)                             # b n d
            return self._unit(inside.to(dense.dtype) @ dense)
        depth = len(self.vit.blocks)
        blocks = depth if blocks is None else check_int(blocks, "blocks")
        if not 1 <= blocks <= depth:
            raise ValueError(f"blocks={blocks} but the ViT has {depth}")
        x, _ = self.vit.embed(images)
        for block in self.vit.blocks[: depth - blocks]:
            x = block(x)
        copies = region_tokens(x, inside, self.vit.blocks[depth - blocks :])
        joint = self._joint(self.vit.norm(copies))
        return joint * inside.any(-1, keepdim=True)

    def _joint(self, x: Tensor) -> Tensor:
        return self._unit(self.image_proj(x))

    @staticmethod
    def _unit(x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)

    def _check(self, images: Tensor) -> None:
        check_images(images)
        check_multiple(images.shape[-2:], self.patch_size)


def contrast(logits: Tensor, same: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy of logits (B, B); several answers may be right.

        -1/2 (mean_i sum_j q_ij log softmax_j(logits)_ij + the same for columns),
        q = same / its sum along the row (the column)

    With one right answer each it is CLIP's loss. Two equal logits on B = 2 give ln 2.

    Args:
        logits: picture i with text j.
        same: (B, B) bool, the right pairs, at least one in each row and column; None: the diagonal.
    """
    if logits.dim() != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"logits is {describe(logits)}: needs (B, B)")
    if same is None:
        same = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if same.shape != logits.shape or same.dtype != torch.bool:
        raise ValueError(f"same is {describe(same)}: needs bool {tuple(logits.shape)}")
    if not bool((same.any(0) & same.any(1)).all()):
        raise ValueError("same has a row or a column without any right pair")
    target = same.to(logits.dtype)
    losses = [
        F.cross_entropy(a, q / q.sum(1, keepdim=True))
        for a, q in ((logits, target), (logits.mT, target.mT))
    ]
    return (losses[0] + losses[1]) / 2


def emoji_encoder(words: Sequence[str], text: dict, **vision) -> ImageText:
    """An `ImageText` that reads words.

    Args:
        words: of `WordText`.
        text: its other arguments.
        vision: arguments of `ImageText`.
    """
    return ImageText(WordText(words, **text), **vision)
