"""OneFormer: queries, masked decoder and heads against transformers' with the same weights."""

from functools import partial

import torch
from transformers import OneFormerConfig, OneFormerForUniversalSegmentation, SwinConfig

from vtlib.segmentation import OneFormer, Predictor, convert_transformers, task_ids

from .before import ratio


def theirs(num_queries=16, embed_dim=64, num_heads=4, hidden_dim=128, num_layers=3):
    """transformers' model, untrained, in eval mode; its text mapper is off, as at inference.

    Args:
        num_queries: N.
        embed_dim: D.
        num_heads: of attention.
        hidden_dim: of feed-forward nets.
        num_layers: of the masked decoder.
    """
    swin = SwinConfig(
        embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=96,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = OneFormerConfig(
        backbone_config=swin, num_labels=8, num_queries=num_queries, hidden_dim=embed_dim,
        mask_dim=embed_dim, conv_dim=embed_dim, num_attention_heads=num_heads,
        dim_feedforward=hidden_dim, encoder_feedforward_dim=hidden_dim, encoder_layers=1,
        decoder_layers=num_layers + 1, is_training=False,
    )
    return OneFormerForUniversalSegmentation(config).eval()


class Given(torch.nn.Module):
    """Maps that are there already, in place of backbone and pixel decoder."""

    def __init__(self, levels, mask_features):
        super().__init__()
        self.levels, self.mask_features = levels, mask_features

    def forward(self, images):
        return self.levels, self.mask_features


def maps(side, embed_dim=64, batch=1):
    """Three levels, coarsest first, and mask features of pictures of side x side pixels."""
    sizes = [side // stride for stride in (32, 16, 8, 4)]
    levels = [torch.randn(batch, embed_dim, s, s) for s in sizes]
    return levels[:3], levels[3]


def against_transformers(sides=(96, 192), batches=(1, 8), repeats=7, **sizes):
    """Time of what comes after the maps: theirs is the module of queries and decoder, both with
    the task token made anew. Differences: of class logits and of mask logits."""
    other = theirs(**sizes)
    width, length = other.config.hidden_dim, other.config.task_seq_len
    predictor = Predictor(
        8, other.config.num_queries, width, other.config.num_attention_heads,
        other.config.dim_feedforward, other.config.decoder_layers - 1,
    )
    state = convert_transformers(other.state_dict())
    state = {name: value for name, value in state.items() if name != "logit_scale"}
    ids = task_ids(["panoptic"], length)
    for side in sides:
        for batch in batches:
            levels, features = maps(side, width, batch)
            model = OneFormer(Given(levels, features), predictor, None, length).eval()
            model.load_state_dict(state)
            images = torch.rand(batch, 3, side, side)

            def decode(levels=levels, features=features, batch=batch):
                token = other.model.task_encoder(ids.float()).expand(batch, -1)
                return other.model.transformer_module(
                    multi_scale_features=levels, mask_features=features, task_token=token,
                )

            run = partial(model, images, "panoptic")
            got, want = run().last, decode()
            apart = max(
                float((got.class_logits - want.prediction_class).abs().max()),
                float((got.mask_logits - want.prediction_masks).abs().max()),
            )
            share = ratio(run, decode, repeats)
            yield f"{side} px, batch {batch}", f"{share:.2f}", f"{apart:.0e}"


def tables():
    with torch.no_grad():
        yield (
            "OneFormer from its maps on, 16 queries of 64 channels, 3 masked layers, transformers' "
            "weights: vtlib's time over transformers'",
            ["pictures", "time", "difference"],
            list(against_transformers()),
        )
