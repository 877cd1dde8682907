"""Tiny random vision-language models of transformers 5.23, made from configurations alone.

    model, inputs, counts = build("internvl")

inputs: keyword arguments of two prompts, padded on the left; counts: the visual tokens of each
image, one a prompt (SmolVLM, Idefics 3: two sub-images). perception_lm and fast_vlm are missing:
they need timm. `narrow` twins have a sliding window that is shorter than their prompts.
"""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

transformers.logging.set_verbosity_error()
WORDS, IMAGE, VIDEO, START, END = 120, 99, 98, 97, 96
GRIDS = torch.tensor([[1, 8, 8], [1, 4, 8]])
TYPES: dict[str, Callable[[], tuple]] = {}

# --------------------------------------------------------------------------------- configurations
SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
TOWER = dict(**SMALL, patch_size=14, image_size=56)
TEXT = dict(
    vocab_size=WORDS,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
)
EVERY_SECOND = ["sliding_attention", "full_attention"] * 2
IDS = dict(image_token_id=IMAGE, video_token_id=VIDEO)
VISION_IDS = dict(**IDS, vision_start_token_id=START, vision_end_token_id=END)
IMAGE_IDS = dict(**IDS, image_start_token_id=START, image_end_token_id=END,
                 video_start_token_id=95, video_end_token_id=94)
ANY_SIZE = dict(image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]])


def llama(kind: str = "llama", **more: Any) -> dict:
    shape = dict(num_key_value_heads=2, max_position_embeddings=4096, head_dim=12)
    return {**TEXT, **shape, "model_type": kind, **more}


def qwen2() -> dict:
    shape = dict(num_key_value_heads=2, max_position_embeddings=4096)
    return {**TEXT, **shape, "model_type": "qwen2"}


def cohere2() -> dict:
    return llama("cohere2", sliding_window=64, layer_types=EVERY_SECOND)


def clip(**more: Any) -> dict:
    return {"model_type": "clip_vision_model", **TOWER, **more}


def siglip(**more: Any) -> dict:
    return {"model_type": "siglip_vision_model", "vision_use_head": False, **TOWER, **more}


def pixtral(side: int = 112) -> dict:
    return {"model_type": "pixtral", **TOWER, "image_size": side, "head_dim": 8}


def three_parts(section: list[int] | None = None, **more: Any) -> dict:
    """A decoder whose positions have three parts."""
    rope = dict(rope_type="default", mrope_section=section or [2, 2, 2], rope_theta=10000.0)
    return {**TEXT, "num_key_value_heads": 2, "rope_parameters": rope, **more}


def half_linear() -> dict:
    """A decoder every second layer of which has linear attention."""
    heads = dict(linear_num_key_heads=2, linear_num_value_heads=4)
    widths = dict(linear_key_head_dim=8, linear_value_head_dim=8)
    kinds = ["linear_attention", "full_attention"] * 2
    return three_parts(head_dim=12, layer_types=kinds, **heads, **widths)


def qwen_tower(**more: Any) -> dict:
    shape = dict(depth=4, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=48)
    return {**shape, "patch_size": 14, "spatial_merge_size": 2, **more}


# ---------------------------------------------------------------------------------------- building
def make(kind: str, **config: Any) -> Any:
    """A model of a model_type, livelier than transformers makes it."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = AutoModelForImageTextToText.from_config(config)
        except ValueError:
            model = AutoModelForMultimodalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
        if not parameter.isfinite().all() or parameter.abs().max() > 1e3 or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def pixels(count: int = 2, side: int = 56) -> torch.Tensor:
    return noise(count, 3, side, side)


def encoded(model: Any, inputs: dict) -> Any:
    """What get_image_features gives of the arguments that it knows."""
    features = getattr(model.base_model, "get_image_features", None) or model.get_image_features
    known = inspect.signature(features).parameters
    with torch.no_grad():
        return features(**{k: v for k, v in inputs.items() if k in known}, return_dict=True)


def tokens_of(out: Any) -> list[int]:
    """How many tokens each image of what get_image_features gave has."""
    tokens = getattr(out, "pooler_output", None)
    tokens = getattr(out, "last_hidden_state", out) if tokens is None else tokens
    if isinstance(tokens, (list, tuple)):
        return [t.numel() // t.shape[-1] for t in tokens]
    return [tokens.shape[1]] * tokens.shape[0] if tokens.dim() == 3 else [tokens.shape[0]]


def prompts(counts: list[int], image: int = IMAGE, around: tuple | None = None) -> dict:
    """input_ids and attention_mask: words, an image, words.

    Args:
        counts: tokens of each prompt's image.
        image: its placeholder.
        around: the tokens before and behind it.
    """
    before, behind = ([around[0]], [around[1]]) if around else ([], [])
    rows = [
        [1, 5, 6, *before, *[image] * count, *behind, 7 + i, 8 + i, 9 + i]
        for i, count in enumerate(counts)
    ]
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return dict(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))


def case(model: Any, inputs: dict, around: tuple | None = None, types: str = "") -> tuple:
    """(model, inputs, counts) of the prompts for some images.

    Args:
        model: the model.
        inputs: its images.
        around: see `prompts`.
        types: name of the argument that marks placeholders, if there is one.
    """
    counts = tokens_of(encoded(model, inputs))
    if len(counts) == 1:
        counts = [counts[0] // 2] * 2
    given = {**prompts(counts, model.config.image_token_id, around), **inputs}
    if types:
        given[types] = (given["input_ids"] == model.config.image_token_id).long()
    return model, given, counts


def build(name: str) -> tuple:
    """(model, inputs, counts) of an entry of `TYPES`."""
    return TYPES[name]()


def entry(function: Callable[[], tuple]) -> Callable[[], tuple]:
    TYPES[function.__name__] = function
    return function


# ------------------------------------------------------------------------------------ LLaVA's kind
def llava_of(vision: dict, text: dict, inputs: dict | None = None, **more: Any) -> tuple:
    config = dict(vision_config=vision, text_config=text, image_token_id=IMAGE, **more)
    return case(make("llava", image_seq_length=16, **config), inputs or dict(pixel_values=pixels()))


@entry
def llava():
    return llava_of(clip(), llama())


WHOLE = dict(vision_feature_layer=-1, vision_feature_select_strategy="full")
TWO_SIZES = dict(pixel_values=pixels(), image_sizes=torch.tensor([[56, 56], [56, 28]]))


@entry
def llava_siglip():
    return llava_of(siglip(), qwen2(), **WHOLE)


@entry
def llava_layers_list():
    return llava_of(clip(), llama(), vision_feature_layer=[-2, -3])


@entry
def llava_mistral_sliding():
    return llava_of(clip(), llama("mistral", sliding_window=12))


@entry
def llava_pixtral():
    return llava_of(pixtral(56), llama("mistral"), TWO_SIZES, **WHOLE)


def any_size(kind: str, vision: dict, text: dict, **more: Any) -> tuple:
    """Pictures of several tiles, packed with a newline a row."""
    model = make(kind, vision_config=vision, text_config=text, image_token_id=IMAGE, **more)
    shapes = torch.tensor([[100, 110], [110, 100]])
    return case(model, dict(pixel_values=noise(2, 5, 3, 56, 56), image_sizes=shapes))


@entry
def llava_next():
    return any_size("llava_next", clip(), llama(), image_seq_length=16, **ANY_SIZE)


@entry
def llava_next_video():
    more = dict(video_token_id=VIDEO, image_seq_length=16)
    return any_size("llava_next_video", clip(), llama(), **more, **ANY_SIZE)


@entry
def llava_onevision():
    return any_size("llava_onevision", siglip(), qwen2(), video_token_id=VIDEO, **ANY_SIZE)


@entry
def vipllava():
    layers = dict(vision_feature_layer=[-2, -3, 0], image_seq_length=16)
    config = dict(vision_config=clip(), text_config=llama(), image_token_id=IMAGE, **layers)
    return case(make("vipllava", **config), dict(pixel_values=pixels()))


@entry
def video_llava():
    lengths = dict(image_seq_length=16, video_seq_length=16)
    model = make("video_llava", vision_config=clip(), text_config=llama(), **IDS, **lengths)
    return case(model, dict(pixel_values_images=pixels()))


@entry
def granite4_vision():
    former = dict(
        model_type="blip_2_qformer", hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=64, encoder_hidden_size=64, cross_attention_frequency=1,
    )
    model = make(
        "granite4_vision", vision_config=clip(patch_size=7, hidden_size=64),
        text_config=llama("granite4_vision_text"), image_token_index=IMAGE, image_seq_length=16,
        deepstack_layer_map=[[-1, 0], [-2, 1]], use_spatial_sampling=False, downsample_rate="4/8",
        spatial_target_layers=[1, 2, 3, 3], qformer_config=former, **ANY_SIZE,
    )
    shapes = torch.tensor([[100, 110], [110, 100]])
    inputs = dict(pixel_values=noise(2, 5, 3, 56, 56), image_sizes=shapes)
    counts = [len(x) for x in encoded(model, inputs).deepstack_features[0][1]]
    return model, {**prompts(counts), **inputs}, counts


# ------------------------------------------------------------------------------------- Qwen's kind
def patches(size: int, *shape: int) -> torch.Tensor:
    return noise(int(GRIDS.prod(1).sum()), *(shape or (3 * 2 * size * size,)))


def qwen(kind: str, vision: dict, text: dict, size: int = 14, **more: Any) -> tuple:
    """Pictures of two sizes between a start and an end token."""
    more = more or VISION_IDS
    model = make(kind, vision_config=vision, text_config=text, **more)
    inputs = dict(pixel_values=patches(size), image_grid_thw=GRIDS)
    types = "" if kind == "qwen2_5_omni_thinker" else "mm_token_type_ids"
    return case(model, inputs, (START, END), types)


@entry
def qwen2_vl():
    tower = dict(depth=4, embed_dim=32, hidden_size=48, num_heads=4, mlp_ratio=2)
    return qwen("qwen2_vl", dict(**tower, patch_size=14, spatial_merge_size=2), three_parts())


WINDOWS = dict(window_size=56, fullatt_block_indexes=[1, 3])


@entry
def qwen2_5_vl():
    return qwen("qwen2_5_vl", qwen_tower(**WINDOWS), three_parts())


DEEP = dict(patch_size=16, num_position_embeddings=64, deepstack_visual_indexes=[0, 1, 2])


@entry
def qwen3_vl():
    return qwen("qwen3_vl", qwen_tower(**DEEP), three_parts(head_dim=12), size=16)


@entry
def qwen3_vl_moe():
    experts = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2)
    text = three_parts(head_dim=12, **experts, moe_intermediate_size=32, decoder_sparse_step=1)
    return qwen("qwen3_vl_moe", qwen_tower(**DEEP), text, size=16)


@entry
def qwen3_5():
    vision = qwen_tower(patch_size=16, num_position_embeddings=64)
    return qwen("qwen3_5", vision, half_linear(), size=16)


@entry
def qwen2_5_omni_thinker():
    audio = dict(d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32)
    tokens = dict(image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=95)
    return qwen(
        "qwen2_5_omni_thinker", qwen_tower(**WINDOWS), three_parts(), audio_token_id=95,
        audio_config=dict(**audio, output_dim=48, num_mel_bins=16), **tokens, **VISION_IDS,
    )


def glm(kind: str) -> tuple:
    text = three_parts([1, 2, 3], head_dim=12, partial_rotary_factor=1.0)
    return qwen(kind, qwen_tower(image_size=112), text, **IMAGE_IDS)


@entry
def glm4v():
    return glm("glm4v")


@entry
def glm46v():
    return glm("glm46v")


@entry
def paddleocr_vl():
    tower = dict(SMALL, num_hidden_layers=3, patch_size=14, image_size=112, spatial_merge_size=2)
    model = make("paddleocr_vl", vision_config=tower, text_config=three_parts(head_dim=12),
                 **VISION_IDS)
    inputs = dict(pixel_values=patches(14, 3, 14, 14), image_grid_thw=GRIDS)
    return case(model, inputs, (START, END), "mm_token_type_ids")


@entry
def video_llama_3():
    tower = dict(SMALL, num_hidden_layers=3, patch_size=14)
    model = make("video_llama_3", vision_config=tower, text_config=qwen2(), **IDS)
    merge = dict(image_grid_thw=GRIDS, image_merge_sizes=torch.tensor([2, 2]))
    return case(model, dict(pixel_values=patches(14, 3 * 14 * 14), **merge))


@entry
def kimi_k25():
    tower = dict(SMALL, num_hidden_layers=2, patch_size=14)
    tower |= dict(pos_emb_height=8, pos_emb_width=8, pos_emb_time=4)
    latent = dict(kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8)
    experts = dict(n_routed_experts=8, n_group=2, topk_group=1, num_experts_per_tok=2)
    text = dict(
        TEXT, model_type="deepseek_v3", num_key_value_heads=4, qk_nope_head_dim=8,
        moe_intermediate_size=32, first_k_dense_replace=1, **latent, **experts,
    )
    model = make("kimi_k25", vision_config=tower, text_config=text, projection_hidden_size=32,
                 **VISION_IDS)
    return case(model, dict(pixel_values=patches(14, 3, 14, 14), image_grid_thw=GRIDS))


# ------------------------------------------------------------------- tiles, pooling, pixel shuffle
def tiled(kind: str, vision: dict, text: dict, **more: Any) -> tuple:
    more = more or dict(image_token_id=IMAGE)
    return case(make(kind, vision_config=vision, text_config=text, **more),
                dict(pixel_values=pixels()))


@entry
def internvl():
    tower = dict(SMALL, image_size=[56, 56], patch_size=[14, 14])
    return tiled("internvl", tower, qwen2(), image_token_id=IMAGE, image_seq_length=4)


@entry
def llama4():
    tower = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        vision_output_dim=32, image_size=56, patch_size=14, projector_input_dim=32,
        projector_output_dim=32,
    )
    text = dict(
        TEXT, model_type="llama4_text", intermediate_size=64, intermediate_size_mlp=96,
        num_key_value_heads=2, head_dim=12, num_local_experts=2, attention_chunk_size=64,
    )
    tokens = dict(image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END)
    return tiled("llama4", tower, text, **tokens)


@entry
def aya_vision():
    return tiled("aya_vision", siglip(), cohere2(), image_token_index=IMAGE)


@entry
def cohere2_vision():
    more = dict(image_token_id=IMAGE, alignment_intermediate_size=64)
    return tiled("cohere2_vision", siglip(), cohere2(), **more)


@entry
def ovis2():
    tower = dict(TOWER, vocab_size=64, hidden_stride=2)
    more = dict(visual_indicator_token_ids=[90, 91, 92, 93, 94], vocab_size=WORDS, hidden_size=48)
    return tiled("ovis2", tower, qwen2(), image_token_id=IMAGE, **more)


@entry
def janus():
    tower = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, patch_size=14)
    tower |= dict(image_size=56, projection_dim=48, num_image_tokens=16, mlp_ratio=2.0)
    codes = dict(embed_dim=8, num_embeddings=16, latent_channels=16, base_channels=32)
    codes |= dict(channel_multiplier=[1, 1], num_res_blocks=1, num_patches=4, projection_dim=48)
    codes["image_token_embed_dim"] = 48
    return tiled("janus", tower, llama(), vq_config=codes, image_token_id=IMAGE)


@entry
def deepseek_vl():
    return tiled("deepseek_vl", siglip(), llama())


@entry
def got_ocr2():
    tower = dict(
        hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=4,
        image_size=64, patch_size=4, window_size=4, global_attn_indexes=[1], mlp_dim=64,
    )
    model = make("got_ocr2", vision_config=tower, text_config=qwen2(), image_token_index=IMAGE)
    return case(model, dict(pixel_values=pixels(side=64)))


@entry
def aria():
    tower = dict(TOWER, model_type="idefics3_vision")
    experts = dict(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, intermediate_size=32)
    model = make("aria", vision_config=tower, text_config=llama("aria_text", **experts),
                 image_token_index=IMAGE, projector_patch_to_query_dict={16: 8})
    return case(model, dict(pixel_values=pixels(), pixel_mask=torch.ones(2, 56, 56) > 0))


def gemma3_of(window: int) -> tuple:
    text = llama("gemma3_text", layer_types=EVERY_SECOND, sliding_window=window)
    tokens = dict(image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END)
    model = make("gemma3", vision_config=siglip(), mm_tokens_per_image=4, **tokens,
                 text_config=dict(text, query_pre_attn_scalar=12))
    return case(model, dict(pixel_values=pixels()), (START, END), "token_type_ids")


@entry
def gemma3():
    return gemma3_of(64)


@entry
def gemma3_narrow():
    return gemma3_of(12)


@entry
def gemma4():
    tower = dict(
        model_type="gemma4_vision", hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, head_dim=8, patch_size=8,
        pooling_kernel_size=2, position_embedding_size=32,
    )
    text = llama("gemma4_text", layer_types=EVERY_SECOND, sliding_window=64)
    text |= dict(vocab_size_per_layer_input=WORDS, hidden_size_per_layer_input=8)
    del text["max_position_embeddings"]
    model = make(
        "gemma4", vision_config=tower, text_config=text, **IDS, boi_token_id=START,
        eoi_token_id=END, audio_token_id=95, boa_token_id=94, eoa_token_index=93,
    )
    place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), -1)
    inputs = dict(pixel_values=torch.rand(2, 16, 192, generator=torch.Generator().manual_seed(0)))
    inputs["image_position_ids"] = place.reshape(1, 16, 2).repeat(2, 1, 1)
    return case(model, inputs, types="mm_token_type_ids")


@entry
def paligemma():
    more = dict(image_token_index=IMAGE, projection_dim=48, hidden_size=48, vocab_size=WORDS)
    model, inputs, counts = tiled("paligemma", siglip(projection_dim=48), llama("gemma"), **more)
    return model, {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}, counts


# --------------------------------------------------------------- images in several runs, and others
def sub_images(kind: str) -> tuple:
    model = make(kind, vision_config=TOWER, text_config=llama(), image_token_id=IMAGE,
                 scale_factor=2)
    return case(model, dict(pixel_values=pixels(4).view(2, 2, 3, 56, 56)))


@entry
def smolvlm():
    return sub_images("smolvlm")


@entry
def idefics3():
    return sub_images("idefics3")


@entry
def idefics2():
    resampler = dict(
        hidden_size=48, resampler_n_latents=8, resampler_depth=2, resampler_n_heads=4,
        resampler_head_dim=12, num_key_value_heads=2,
    )
    model = make("idefics2", vision_config=TOWER, perceiver_config=resampler,
                 text_config=llama("mistral"), image_token_id=IMAGE)
    return case(model, dict(pixel_values=pixels().view(2, 1, 3, 56, 56)))


def rows_of_pixtral(kind: str, text: dict, **token: int) -> tuple:
    config = dict(vision_config=pixtral(), text_config=text, spatial_merge_size=2)
    return case(make(kind, **config, **token), TWO_SIZES)


@entry
def mistral3():
    return rows_of_pixtral("mistral3", llama("mistral"), image_token_index=IMAGE)


@entry
def lighton_ocr():
    return rows_of_pixtral("lighton_ocr", llama("qwen3"), image_token_id=IMAGE)


def codes_of(kind: str, side: int, text: dict, names: dict, **codes: Any) -> tuple:
    """A model that reads pictures as discrete codes; its placeholder is word 60."""
    model = make(kind, vocabulary_map=names, image_token_id=60, vq_config=codes, **text)
    inputs = dict(pixel_values=pixels(side=side))
    if kind == "emu3":
        inputs["image_sizes"] = torch.tensor([[side, side]] * 2)
    return case(model, inputs)


@entry
def emu3():
    names = {"<image>": 60, "<|extra_200|>": 61}
    names |= {f"<|visual token {i:06d}|>": 70 + i for i in range(16)}
    return codes_of(
        "emu3", 16, dict(text_config=llama("emu3_text_model")), names, codebook_size=16,
        embed_dim=4, latent_channels=4, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, hidden_size=32, attn_resolutions=[], temporal_downsample_factor=1,
    )


@entry
def chameleon():
    letters = ["".join(chr(65 + int(digit)) for digit in str(i)) for i in range(16)]
    names = {"<image>": 60, **{f"IMGIMG{word}Z": 70 + i for i, word in enumerate(letters)}}
    text = dict(TEXT, num_key_value_heads=4)
    del text["bos_token_id"]
    return codes_of(
        "chameleon", 32, text, names, embed_dim=8, num_embeddings=16, latent_channels=8,
        resolution=32, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1,
    )


@entry
def fuyu():
    text = dict(TEXT, model_type="persimmon")
    model = make("fuyu", text_config=text, image_size=56, patch_size=14, image_token_id=IMAGE)
    return model, {**prompts([16, 16]), "image_patches": noise(2, 16, 14 * 14 * 3)}, [16, 16]


@entry
def lfm2_vl():
    tower = dict(SMALL, model_type="siglip2_vision_model", num_hidden_layers=3, patch_size=8)
    text = dict(TEXT, model_type="lfm2", num_key_value_heads=2)
    text["layer_types"] = ["conv", "full_attention"] * 2
    model = make(
        "lfm2_vl", vision_config=dict(tower, num_patches=16, vision_use_head=False),
        text_config=text, image_token_id=IMAGE, projector_hidden_size=48,
    )
    inputs = dict(pixel_values=noise(2, 16, 192), spatial_shapes=torch.tensor([[4, 4], [4, 4]]))
    return case(model, dict(**inputs, pixel_attention_mask=torch.ones(2, 16, dtype=torch.long)))


@entry
def minicpmv4_6():
    tower = dict(SMALL, num_hidden_layers=3, patch_size=8, image_size=64, insert_layer_id=1)
    model = make(
        "minicpmv4_6", vision_config=tower, insert_layer_id=1, **IDS, patch_size=8, image_size=64,
        text_config=dict(half_linear(), model_type="qwen3_5_text"),
    )
    shapes = torch.tensor([[8, 8], [8, 8]])
    return case(model, dict(pixel_values=noise(1, 3, 8, 8 * 128), target_sizes=shapes))


@entry
def molmo2():
    heads = dict(num_attention_heads=4, num_key_value_heads=4, head_dim=8)
    tower = dict(SMALL, **heads, image_size=[56, 56], patch_size=14, num_position_embeddings=16)
    adapter = dict(heads, vision_feature_layer=[-1, -2], hidden_size=32, intermediate_size=64)
    text = dict(TEXT, num_key_value_heads=2, head_dim=12, additional_vocab_size=8)
    model = make(
        "molmo2", vision_config=tower, adapter_config=dict(adapter, text_hidden_size=48),
        text_config=text, image_patch_id=IMAGE, image_start_token_id=START,
        image_end_token_id=END, low_res_image_start_token_id=95, frame_start_token_id=94,
        frame_end_token_id=93,
    )
    four = torch.arange(16).view(4, 4)  # tokens of a crop, of 4 patches each
    pooling = torch.cat([four + 16 * crop for crop in range(4)])
    inputs = dict(pixel_values=noise(4, 16, 14 * 14 * 3), image_token_pooling=pooling)
    return case(model, dict(**inputs, image_grids=torch.tensor([[2, 2, 2, 2]] * 2)),
                types="mm_token_type_ids")


# ----------------------------------------------------------------------------- what is not pruned
FORMER = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    encoder_hidden_size=32, vocab_size=WORDS,
)


def queries(kind: str) -> tuple:
    text = dict(
        model_type="opt", vocab_size=WORDS, hidden_size=48, num_hidden_layers=4, ffn_dim=96,
        num_attention_heads=4, word_embed_proj_dim=48, max_position_embeddings=512,
        pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )
    model = make(kind, vision_config=dict(TOWER, num_hidden_layers=3), qformer_config=FORMER,
                 text_config=text, num_query_tokens=8, image_token_index=IMAGE)
    return model, {**prompts([8, 8]), "pixel_values": pixels()}, [8, 8]


@entry
def blip2():
    return queries("blip-2")


@entry
def instructblip():
    return queries("instructblip")


@entry
def mllama():
    tower = dict(
        hidden_size=32, num_hidden_layers=3, num_global_layers=2, attention_heads=4,
        intermediate_size=64, vision_output_dim=64, image_size=56, patch_size=14, max_num_tiles=1,
        intermediate_layers_indices=[1], supported_aspect_ratios=[[1, 1]],
    )
    text = dict(TEXT, num_key_value_heads=2, cross_attention_layers=[1, 3])
    model = make("mllama", vision_config=tower, image_token_index=IMAGE,
                 text_config=dict(text, max_position_embeddings=512))
    return model, {**prompts([1, 1]), "pixel_values": pixels().view(2, 1, 1, 3, 56, 56)}, [1, 1]


@entry
def florence2():
    tower = dict(
        depths=[1, 1], patch_size=[7, 3], patch_stride=[4, 2], patch_padding=[3, 1],
        patch_prenorm=[False, True], embed_dim=[16, 32], num_heads=[2, 4], num_groups=[2, 4],
        window_size=4, projection_dim=48,
    )
    layers = dict(encoder_layers=2, decoder_layers=2, encoder_ffn_dim=96, decoder_ffn_dim=96)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4)
    ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2)
    text = dict(model_type="bart", vocab_size=WORDS, d_model=48, **layers, **heads, **ids)
    model = make("florence2", vision_config=tower, image_token_id=IMAGE,
                 text_config=dict(text, max_position_embeddings=512))
    return case(model, dict(pixel_values=pixels(side=32)))
