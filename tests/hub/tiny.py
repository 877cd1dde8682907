"""Tiny random LLaVA, Qwen2.5-VL and CLIP, made from configurations alone, and prompts for them."""

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
)

from vtlib.pruning.method import Method
from vtlib.tokens import Plan, Stage, top_tokens

N, L = 16, 5  # tokens of an image, layers of the decoder
IMAGE = 99
CLOSE = dict(atol=2e-6, rtol=1e-5)


# ------------------------------------------------------------------------------- tiny models
def lively(model):
    """Livelier than transformers makes it: attention that prefers something."""
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    return model.eval()


def make_dinov2(width=48):
    """DINOv2 ViT-S/14 but narrow: as many layers and heads, the same table of places."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=1,
        image_size=518,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )
    return lively(Dinov2Model(config))


def make_llava(tower="clip", decoder="sdpa", kind=LlamaConfig, **text):
    """kind: the class of the text model's configuration, text: what it is to be given."""
    torch.manual_seed(0)
    vision = (CLIPVisionConfig if tower == "clip" else SiglipVisionConfig)(
        image_size=56,
        patch_size=14,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    text = kind(
        **{
            **dict(
                vocab_size=100,
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=L,
                num_attention_heads=4,
                num_key_value_heads=2,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=None,
            ),
            **text,
        }
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        image_seq_length=N,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        attn_implementation={"text_config": decoder},
    )
    return lively(LlavaForConditionalGeneration(config))


def make_qwen():
    torch.manual_seed(0)
    vision = dict(
        depth=4,
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        out_hidden_size=48,
        patch_size=14,
        spatial_merge_size=2,
        window_size=56,
        fullatt_block_indexes=[1, 3],
    )
    text = dict(
        vocab_size=100,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=L,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters=dict(rope_type="default", mrope_section=[2, 2, 2], rope_theta=10000.0),
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        video_token_id=98,
        vision_start_token_id=97,
        vision_end_token_id=96,
    )
    return lively(Qwen2_5_VLForConditionalGeneration(config))


def prompt(*rows, images=None, seed=0, n=N):
    """Rows are lists of ids, with "i" for an image; padded on the left with 0."""
    rows = [sum(([IMAGE] * n if t == "i" else [t] for t in row), []) for row in rows]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    count = int((ids == IMAGE).sum()) // n
    pixels = torch.randn(count, 3, 56, 56, generator=torch.Generator("cpu").manual_seed(seed))
    return dict(input_ids=ids, attention_mask=mask, pixel_values=pixels)


def qwen_prompt(*grids, rows=2, seed=0):
    """Each row holds one image of each grid (h, w in patches)."""
    row = [1]
    for h, w in grids:
        row += [97] + [IMAGE] * (h * w // 4) + [96]
    ids = torch.tensor([row + [7 + i, 8, 9] for i in range(rows)])
    thw = torch.tensor([[1, h, w] for h, w in grids] * rows)
    generator = torch.Generator("cpu").manual_seed(seed)
    pixels = torch.randn(int(thw.prod(1).sum()), 3 * 2 * 14 * 14, generator=generator)
    return dict(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        image_grid_thw=thw,
        mm_token_type_ids=(ids == IMAGE).int(),
    )


def choose_by_cls(vision, keep):
    return Plan(top_tokens(vision.cls_row.mean(1), keep), vision.features.shape[1])


top_cls = Method("top_cls", "Top [CLS]", prune=choose_by_cls, reads=("cls_row",))


def last_token(after, keep):
    """The best by the last token's attention in the layer to come."""

    def plan(state, keep):
        weights = state.attention(slice(-1, None))[:, :, 0, state.visual]
        return state.top(weights.mean(1), keep)

    return Stage(after, keep, plan)


def greedy(model, inputs, steps=4, **options):
    return model.generate(**inputs, max_new_tokens=steps, do_sample=False, **options)


def by_hand(model, inputs, steps=4):
    """Greedy decoding with a cache and nothing else: no mask, no positions."""
    out = model(**inputs)
    new = [out.logits[:, -1:].argmax(-1)]
    for _ in range(steps - 1):
        out = model(input_ids=new[-1], past_key_values=out.past_key_values)
        new.append(out.logits[:, -1:].argmax(-1))
    return torch.cat(new, dim=1), out.past_key_values


def lengths(cache):
    return [layer.keys.shape[2] for layer in cache.layers]


def hooks(model):
    return [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]


PROMPT = prompt([1, 5, 6, "i", 7, 8, 9, 10], [1, 5, 6, "i", 7, 8, 3, 11])
QUESTION = torch.tensor([[58, 4, 5, 6] + [59] * 8])
"""Words for CLIP: start, three, and padding that begins with the end."""


def make_clip():
    torch.manual_seed(1)
    return CLIPModel(
        CLIPConfig(
            text_config=dict(
                vocab_size=60,
                hidden_size=24,
                intermediate_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=12,
                eos_token_id=59,
                bos_token_id=58,
                pad_token_id=59,
            ),
            vision_config=dict(
                hidden_size=32,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=56,
                patch_size=14,
            ),
            projection_dim=20,
        )
    ).eval()
