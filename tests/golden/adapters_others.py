"""Golden cases of the rivals, `vtlib.pruning.others`: what official functions chose of recorded
inputs."""

import dataclasses

import torch
from torch import Tensor

from .adapters import adapter


def vision_of(selected, cls_row=None, keys=None, num_prefix=1):
    from vtlib.tokens import VisionOutputs

    num_tokens = selected.shape[1] - num_prefix
    return VisionOutputs(
        selected, (1, num_tokens), torch.nn.Identity(), num_prefix, cls_row=cls_row, keys=keys
    )


# ----------------------------------------------------------------------------- before the decoder
@adapter("others", "CLIPVisionTower_VisionZip.forward", inputs=("cls_row", "keys", "hidden"))
def visionzip(case):
    from vtlib.pruning.others import cls_attention, visionzip

    c, t = case.config, case.tensors
    vision = vision_of(t["hidden"], t["cls_row"][..., 1:], t["keys"])
    plan = visionzip(vision, c["keep"])
    kept = 1 + plan.index[:, : c["dominant"]]
    order = 1 + cls_attention(vision).argsort(dim=1, descending=True)[:, : c["dominant"]]
    if not torch.equal(order.sort(dim=1).values, kept):
        raise ValueError("the plan's dominant tokens are not the top of the score")
    cls = t["hidden"][:, :1]                                        # handed over by the release
    return dict(
        dominant_indices=torch.cat([torch.zeros_like(order[:, :1]), order], dim=1),
        tokens_out=torch.cat([cls, plan.apply(vision.features)], dim=1),
    )


@adapter("others", "CLIPVisionTower.token_prune_merge_advanced (if_adaptive=False)",
         inputs=("query", "key", "hidden"))
def prumerge(case):
    from vtlib.pruning.others import cls_attention, prumerge

    t = case.tensors
    query, key = t["query"][:, None], t["key"][:, None]             # one head
    row = (query[:, :, :1] @ key.mT * key.shape[-1] ** -0.5).softmax(dim=-1)[:, :, 0, 1:]
    vision = vision_of(t["hidden"], row, t["key"])
    plan = prumerge(vision, case.config["keep"])
    falling = cls_attention(vision).gather(1, plan.index[:, :-1]).argsort(dim=1, descending=True)
    out = plan.apply(vision.features)
    order = falling[..., None].expand(-1, -1, out.shape[2])
    return {"tokens_out": torch.cat([out[:, :-1].gather(1, order), out[:, -1:]], dim=1)}


@adapter("others", "LlavaMetaForCausalLM.encode_images (VisPruner)",
         inputs=("features", "cls_row"))
def vispruner(case):
    from vtlib.pruning.others import vispruner

    vision = vision_of(case.tensors["features"], case.tensors["cls_row"], num_prefix=0)
    return {"index_mask": vispruner(vision, case.config["keep"]).kept()}


@adapter("others", "LlavaMetaForCausalLM.encode_images (CDPruner)",
         inputs=("tokens", "image_embeds", "text_embeds"))
def cdpruner(case):
    from vtlib.pruning.others import cdpruner
    from vtlib.tokens.cosine import unit

    t = case.tensors
    text = -unit(t["text_embeds"]).mean(dim=1)                      # the release's sign
    vision = vision_of(t["tokens"], num_prefix=0)
    plan = cdpruner(vision, case.config["keep"], patches=t["image_embeds"], text=text)
    return {"index_mask": plan.kept()}


# ----------------------------------------------------------------------------- inside the decoder
@dataclasses.dataclass
class Recorded:
    """What a cut looks at: recorded queries and keys, or weights, of one prompt without padding.

    size: of the prompt. visual: slice of it. scores: those by which tokens were kept.
    """

    size: int
    visual: slice
    hidden: Tensor | None = None
    pair: tuple[Tensor, Tensor] | None = None
    weights: Tensor | None = None
    scores: list[Tensor] = dataclasses.field(default_factory=list)

    def state(self):
        from vtlib.tokens import keep_all
        from vtlib.vlm.state import State

        recorded, count = self, self.visual.stop - self.visual.start

        class Seen(State):
            def qk(self, layer="next"):
                return recorded.pair

            def attention(self, rows=slice(None), layer="next", qk=None):
                if recorded.weights is None:
                    return super().attention(rows, layer, qk)
                return recorded.weights                             # of the words alone

            def top(self, score, keep):
                recorded.scores.append(score)
                return super().top(score, keep)

        hidden = torch.zeros(1, self.size, 1) if self.hidden is None else self.hidden
        return Seen(
            decoder=None,
            after=0,
            hidden=hidden,
            entered=None,
            positions=torch.arange(self.size)[None],
            valid=torch.ones(1, self.size, dtype=torch.bool),
            visual=self.visual,
            num_visual=count,
            plan=keep_all(1, count),
        )


@adapter("others", "LlamaModel.pdrop_rank_drop", inputs=("q0", "k0", "q1", "k1", "q2", "k2"))
def pyramiddrop(case):
    from vtlib.pruning.others import pyramiddrop

    c, t = case.config, case.tensors
    counts = [(s.after, s.keep) for s in pyramiddrop(c["num_layers"], 72, 576)]
    if counts != list(zip(c["layer_list"], c["left_of_576"], strict=True)):
        raise ValueError(f"cuts {counts} are not the release's")
    left, out = c["N"], {}
    for number, stage in enumerate(pyramiddrop(c["num_layers"], c["keep"], c["N"])):
        visual = slice(c["before"], c["before"] + left)
        pair = t[f"q{number}"], t[f"k{number}"]
        seen = Recorded(visual.stop + c["behind"], visual, pair=pair)
        plan = stage.plan(seen.state(), stage.keep)
        out[f"kept{number}"], left = plan.index, len(plan)
    return out


@adapter(
    "others", "LlamaDynamicvitModel.forward (rater selection), attn_postprocess_topk",
    inputs=("hidden", "attention0", "attention1"),
)
def sparsevlm(case):
    from vtlib.pruning.others import raters, sparsevlm

    c, t = case.config, case.tensors
    rate, cut, *_ = sparsevlm(32, c["left"][1], c["N"])
    visual = slice(c["before"], c["before"] + c["N"])
    state = Recorded(visual.stop + c["behind"], visual, hidden=t["hidden"]).state()
    if len(rate.plan(state, rate.keep)) != c["N"]:
        raise ValueError("rating the words drops tokens")
    out = {"raters": raters(state)[:, visual.stop :]}
    for number, left in enumerate(c["left"]):
        seen = Recorded(visual.stop + c["behind"], visual, weights=t[f"attention{number}"])
        out[f"mask{number}"] = cut.plan(seen.state(), left).kept()
        (out[f"score{number}"],) = seen.scores
        visual = slice(visual.start, visual.start + left)
    return out


@adapter("others", "DART.get_retained_image_token", inputs=("hidden", "key"))
def dart(case):
    from vtlib.pruning.others import dart

    c, t = case.config, case.tensors
    visual = slice(c["before"], c["before"] + c["N"])
    (stage,) = dart(32, c["keep"], c["N"])
    seen = Recorded(visual.stop + c["behind"], visual, t["hidden"], pair=(t["key"], t["key"]))
    return {"kept": visual.start + stage.plan(seen.state(), stage.keep).index}
