"""FasterVLM's golden cases: a CLIP tower in plain functions, then vtlib's row, score and plan, and
the text around the kept tokens."""

import torch
import torch.nn.functional as F
from einops import rearrange

from .adapters import adapter

TOWER = "vision_tower.vision_model."
BOTH = ("weight", "bias")
LAYER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
         "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
EMBEDDINGS = ("class_embedding", "patch_embedding.weight", "position_embedding.weight")
PARTS = [*[f"embeddings.{part}" for part in EMBEDDINGS],
         *[f"{norm}.{kind}" for norm in ("pre_layrnorm", "post_layernorm") for kind in BOTH],
         *[f"encoder.layers.{i}.{part}.{kind}" for i in range(24) for kind in BOTH
           for part in LAYER]]
PROJECTOR = [f"mm_projector.{i}.{kind}" for i in (0, 2) for kind in BOTH]
WEIGHTS = [TOWER + part for part in PARTS] + PROJECTOR


class Clip:
    """The official vision tower of a case, `w` by official names; images (B, 3, S, S) -> hidden
    states and (q, k) of each layer."""

    def __init__(self, tensors, config):
        self.w = {key.removeprefix(TOWER): value for key, value in tensors.items()
                  if key.startswith(TOWER)}
        self.c = config

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, x, name):
        scale, shift = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], scale, shift, self.c["layer_norm_eps"])

    def __call__(self, images):
        weight = self.w["embeddings.patch_embedding.weight"]
        x = F.conv2d(images, weight, stride=self.c["patch_size"])
        cls = self.w["embeddings.class_embedding"].expand(len(images), 1, -1)
        x = torch.cat([cls, rearrange(x, "b d h w -> b (h w) d")], dim=1)
        x = self.norm(x + self.w["embeddings.position_embedding.weight"], "pre_layrnorm")
        hidden, pairs, heads = [x], [], self.c["num_attention_heads"]
        for i in range(self.c["num_hidden_layers"]):
            layer = f"encoder.layers.{i}."
            y = self.norm(x, layer + "layer_norm1")
            parts = (self.linear(y, f"{layer}self_attn.{name}_proj") for name in "qkv")
            q, k, v = (rearrange(part, "b n (h p) -> b h n p", h=heads) for part in parts)
            y = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n p -> b n (h p)")
            x = x + self.linear(y, layer + "self_attn.out_proj")
            y = self.linear(self.norm(x, layer + "layer_norm2"), layer + "mlp.fc1")
            y = y * torch.sigmoid(1.702 * y) if self.c["hidden_act"] == "quick_gelu" else F.gelu(y)
            x = x + self.linear(y, layer + "mlp.fc2")
            hidden.append(x)
            pairs.append((q, k))
        return hidden, pairs


def splice(ids, table, visual, placeholder):
    """One row of text ids with one placeholder: the text's embeddings around the visual tokens."""
    at = (ids == placeholder).nonzero()[0, 0]
    return torch.cat([table[ids[:at]], visual, table[ids[at + 1 :]]])


@adapter("fastervlm", "CLIPVisionTower.forward + LlavaMetaForCausalLM.encode_images + "
                      "prepare_inputs_labels_for_multimodal",
         inputs=("pixel_values", "input_ids", "embed_tokens.weight", *WEIGHTS))
def fastervlm(case):
    from vtlib.pruning.fastervlm import cls_row, prune, prune_views, score
    from vtlib.tokens import VisionOutputs

    c, t = case.config, case.tensors

    def project(x):
        x = F.gelu(F.linear(x, t["mm_projector.0.weight"], t["mm_projector.0.bias"]))
        return F.linear(x, t["mm_projector.2.weight"], t["mm_projector.2.bias"])
    images = t["pixel_values"]
    views = images.shape[1] if images.dim() == 5 else None
    hidden, pairs = Clip(t, c["clip"])(images.flatten(0, -4))
    side = c["clip"]["image_size"] // c["clip"]["patch_size"]
    row = cls_row(*pairs[c["select_layer"]])
    vision = VisionOutputs(hidden[c["select_layer"]], (side, side), project, cls_row=row)
    plan, scores = prune(vision, c["visual_token_num"]), score(vision.cls_row)
    if views is None:
        kept = project(plan.apply(vision.features))
    else:
        whole = prune_views(vision, c["visual_token_num"], tuple(c["anyres_grid_rows_cols"]))
        kept = project(whole.apply(rearrange(vision.features, "(b v) n d -> b (v n) d", v=views)))
    order = scores.argsort(dim=1, descending=True, stable=True)[:, : len(plan)]
    table, placeholder = t["embed_tokens.weight"], c["image_token_index"]
    prompts = [splice(ids, table, visual, placeholder)
               for ids, visual in zip(t["input_ids"], kept, strict=True)]
    return {"hidden_states_selected": vision.features, "cls_attention_per_head": vision.cls_row,
            "cls_attention": scores, "topk_order": order, "keep_mask": plan.kept(),
            "projected_all": vision.tokens, "inputs_embeds": torch.stack(prompts)}
