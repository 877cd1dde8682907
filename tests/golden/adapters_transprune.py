"""TransPrune: the weight of one module, and a Llama decoder cut twice."""

from einops import rearrange

from .adapters import adapter


def llama(case):
    """vtlib's decoder with the case's weights, in float32."""
    from vtlib.vlm.decoder import Decoder

    c = case.config
    decoder = Decoder(
        c["hidden_size"],
        c["num_hidden_layers"],
        c["num_attention_heads"],
        c["num_key_value_heads"],
        c["intermediate_size"],
        c.get("qkv_bias", False),
        c["rope_theta"],
        c["rms_norm_eps"],
    ).eval()
    decoder.load_state_dict({name: value.float() for name, value in case.weights("model.").items()})
    return decoder


PARTS = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.o_proj.weight",
    *(f"self_attn.{x}_proj.{kind}" for x in "qkv" for kind in ("weight", "bias")),
    *(f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
)
WEIGHTS = ("model.norm.weight", *(f"model.layers.{i}.{part}" for i in range(64) for part in PARTS))


@adapter(
    "transprune",
    "LlamaDecoderLayer_TransPrune.compute_transf_weight",
    inputs=("token_in", "token_out"),
)
def transition_weight(case):
    from vtlib.pruning.transprune import transition, ttv

    magnitude, cosine = transition(case.tensors["token_in"], case.tensors["token_out"])
    # the release sums over the batch too
    together = [rearrange(x, "b n -> 1 (b n)") for x in (magnitude, cosine)]
    weight = ttv(*together).reshape(magnitude.shape)
    of_the_paper = ttv(magnitude, cosine, direction="abs")
    return dict(
        magnitude=magnitude, cosine=cosine, weight=weight, weight_paper_formula=of_the_paper
    )


@adapter(
    "transprune",
    "LlamaModel.transprune_forward, transprune_rank_drop",
    inputs=("inputs_embeds", *WEIGHTS),
)
def model(case):
    from vtlib.pruning import transprune

    c = case.config
    visual = slice(c["system_tokens"], c["system_tokens"] + c["visual_tokens_in"])
    cuts = transprune.stages(
        c["num_hidden_layers"],
        None,
        c["visual_tokens_in"],
        c["image_token_ratios"],
        c["pruning_layers"],
        c["accumulating_layers"],
    )
    x, positions = case.tensors["inputs_embeds"], transprune.METHOD.positions
    run = llama(case).prefill(x, visual, cuts, positions=positions)
    out = {"last_hidden_state": run.hidden}
    for i, (state, plan) in enumerate(zip(run.states, run.plans, strict=True)):
        so_far = [n for n in c["accumulating_layers"] if n <= state.after]
        rows = transprune.layer_ttv([state.transitions[n] for n in so_far])
        behind = slice(state.visual.stop, None)
        total = rows.sum(dim=1)
        asking = state.asking[:, behind]
        attends = transprune.iga(state.attention(behind), state.visual, asking)
        out |= {
            f"stage{i}.hidden_in": state.hidden,
            f"stage{i}.ttv_layers": rows[0],
            f"stage{i}.ttv": (total / total.sum())[0],
            f"stage{i}.iga": (attends / attends.sum())[0],
            f"stage{i}.kept": plan.index[0],
        }
        want = c["kept_per_stage"][i]
        if len(plan) != want:
            raise ValueError(f"stage {i} keeps {len(plan)} tokens; the case says {want}")
    return out
