"""TinyVLM-DINO: a real encoder, DINOv2 ViT-S/14, in front of TinyVLM's decoder.

    model = hub.tinyvlm_dino()                           # needs what `make real` fetches
    taken = exam.exam(100, size=dino.SIZE, patch=14)     # 16 x 16 patches, as TinyVLM's own
    vision = bench.encode(model, taken.images)
    bench.grade(model, vision, taken, "divprune", keep=28)

DINOv2 (Oquab et al., TMLR 2024, arXiv 2304.07193) learned without labels, on photographs; it is
frozen, and never saw a pictogram. Projector and decoder were trained on EmojiWorld's questions
(`train/tinyvlm_dino.py`; scores in data/README.md) and are all that the checkpoint holds. The
features are those of the layer before the last, as in LLaVA, behind DINOv2's last norm.
"""

import torch
from torch import Tensor, nn

from .. import checkpoints
from ..nn import IMAGENET_MEAN, IMAGENET_STD, check_dtype, check_images, check_multiple
from ..vlm import TinyVLM
from ..vlm.encoder import wanted
from .convert import DINOV2
from .tower import cls_row, full_map
from .weights import real, real_missing

SIZE = 224
"""The side that the checkpoint was trained at: 16 x 16 patches of 14 pixels."""
OBJECT_LAYER = 10
"""HiPrune's object layer (from 1): where the most attended patches overlap EmojiWorld's objects
best. On DINOv2 the overlap rises and falls as the paper says; on TinyVLM's encoder it only rises.
"""


class DinoEncoder(nn.Module):
    """DINOv2 with the interface of `vtlib.vlm.Encoder`.

    Args:
        backbone: transformers' Dinov2Model, which is frozen here; None: without it nothing can be
            seen, but a TinyVLM has its shape, and can be trained on features that were kept.
    """

    num_prefix = 1
    place_dim = 16
    options = {"hiprune": {"object_layer": OBJECT_LAYER}}

    def __init__(self, backbone=None):
        super().__init__()
        shape = DINOV2 if backbone is None else backbone.config.to_dict()
        self.embed_dim, self.num_layers = shape["hidden_size"], shape["num_hidden_layers"]
        self.num_heads, self.patch_size = shape["num_attention_heads"], shape["patch_size"]
        self.backbone = None if backbone is None else backbone.requires_grad_(False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w): patches per side. ValueError for sizes that are no multiple of the patch's."""
        check_multiple((height, width), self.patch_size)
        return height // self.patch_size, width // self.patch_size

    def queries_and_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and k of layer number `layer` for its input x, each (B, heads, 1 + N, head_dim)."""
        block = self.backbone.encoder.layer[layer]
        y = block.norm1(x)
        projections = block.attention.q_proj, block.attention.k_proj
        q, k = (proj(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for proj in projections)
        return q, k

    def forward(self, images, select=-2, need=(), attention=(), hidden=()):
        """As `vtlib.vlm.Encoder.forward`; `selected` is behind DINOv2's last norm, `hidden` is not.

        Args:
            images: (B, 3, H, W) in [0, 1], sides multiples of the patch's.
            select: index into the L + 1 hidden states.
            need: of "cls_row" (B, heads, N) and "keys" (B, 1 + N, head_dim), both of the layer that
                made the selected state.
            attention: layers (0-based, negative from the end) whose full weights are wanted.
            hidden: which hidden states are wanted (0: the embeddings).

        FileNotFoundError, in one line, without the backbone.
        """
        args = wanted(select, need, attention, hidden, self.num_layers)
        select, need, attention, hidden = args
        states = self._states(images)
        out = {
            "grid": self.grid(*images.shape[-2:]),
            "selected": self.backbone.layernorm(states[select]),
            "last": states[-1],
            "hidden": {index: states[index] for index in hidden},
            "attention": {i: full_map(*self.queries_and_keys(i, states[i])) for i in attention},
        }
        if need:
            q, k = self.queries_and_keys(select - 1, states[select - 1])
        if "cls_row" in need:
            out["cls_row"] = cls_row(q, k)[..., self.num_prefix :]
        if "keys" in need:
            out["keys"] = k.mean(dim=1)                                          # b 1+n p
        return out

    def _states(self, images):
        """The L + 1 hidden states, each (B, 1 + N, D)."""
        check_images(images)
        self.grid(*images.shape[-2:])
        if self.backbone is None:
            told = real_missing("dinov2") or "load the model with hub.tinyvlm_dino()"
            raise FileNotFoundError(f"this model cannot see, its backbone is not there: {told}")
        check_dtype(images, self.backbone.layernorm.weight, "images")
        mean = images.new_tensor(IMAGENET_MEAN)[:, None, None]
        std = images.new_tensor(IMAGENET_STD)[:, None, None]
        pixels = (images - mean) / std
        return self.backbone(pixels, output_hidden_states=True).hidden_states


def reader(vocabulary: list[str]) -> TinyVLM:
    """A TinyVLM-DINO that reads and cannot see: projector and decoder, as the checkpoint has them.

    vocabulary: its words.
    """
    return TinyVLM(vocabulary, encoder=DinoEncoder())


def tinyvlm_dino(device: torch.device | str | None = None) -> TinyVLM:
    """The shipped TinyVLM-DINO in eval mode; `model.info` is its file's header (score, command).

    device: where it goes; None: the CPU. FileNotFoundError (DINOv2's weights) or ImportError
    (transformers) in one line when something is missing.
    """
    backbone = real("dinov2", device)
    model = checkpoints.load("tinyvlm_dino", reader, device)
    model.encoder = DinoEncoder(backbone)
    model.info = checkpoints.info("tinyvlm_dino")
    return model
