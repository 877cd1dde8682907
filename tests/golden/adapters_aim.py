"""AIM: merging step by step, the page rank, and a Qwen2 decoder that masks what it drops."""

import torch

from .adapters import adapter
from .adapters_transprune import WEIGHTS, llama


@adapter("aim", "bipartite_soft_matching_merge (applied repeatedly)", inputs=("tokens",))
def merging(case):
    from vtlib.pruning.aim import merge, merge_step

    c, tokens, out = case.config, case.tensors["tokens"], {}
    x = tokens
    for i, r in enumerate(c["r_per_step"]):
        x = merge_step(x, r).apply(x)
        out[f"step{i}"] = x
        together = merge(tokens, c["r_per_step"][: i + 1]).apply(tokens)  # one plan for all steps
        torch.testing.assert_close(together, x, atol=1e-6, rtol=1e-5)
    return out


@adapter("aim", "get_importance", inputs=("logits",))
def importance(case):
    from vtlib.pruning.aim import page_rank

    c, logits = case.config, case.tensors["logits"]
    later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    causal = logits.masked_fill(later, -torch.inf)
    return {"importance": page_rank(causal, c["tau"], c["iterations"], c["d"])}


@adapter(
    "aim",
    "Qwen2Model.forward with token pruning (eager attention, prefill)",
    inputs=("inputs_embeds", *WEIGHTS),
)
def llm_pruning(case):
    from vtlib.pruning import aim
    from vtlib.tokens import Stage

    c, x = case.config, case.tensors["inputs_embeds"]
    start, stop, size = c["boundaries"]
    if size != c["sequence"]:
        raise ValueError(f"boundaries={c['boundaries']}: the last is the length, {c['sequence']}")
    layers, num_visual = c["num_hidden_layers"], stop - start
    cuts = aim.stages(layers, None, num_visual, rates=c["retain_rate"])
    of_the_paper = [cut.keep for cut in aim.stages(layers, None, num_visual)]
    if layers == 28 and [cut.keep for cut in cuts] != of_the_paper:
        raise ValueError(f"retain_rate={c['retain_rate']} is not the schedule for 28 layers")
    recorded = [name for name in case.tensors if name.startswith("importance_layer")]
    asked = {int(name.removeprefix("importance_layer")) + 1 for name in recorded}
    for after in asked - {cut.after for cut in cuts}:               # look, and hide nothing more
        left = min((cut.keep for cut in cuts if cut.after < after), default=num_visual)
        cuts.append(Stage(after, left, lambda state, keep: state.top(state.alive.float(), keep)))
    positions = aim.METHOD.positions
    run = llama(case).prefill(x, slice(start, stop), cuts, positions=positions, mode="mask")
    mask = torch.stack([*run.cache.valid[1:], run.valid])           # what the layer after each sees
    out = {"last_hidden_state": run.hidden, "mask_after_layer": mask}
    for state in run.states:
        rank = aim.page_rank(state.logits(layer="last"), running=state.running)
        out[f"importance_layer{state.after - 1}"] = rank
    return out
