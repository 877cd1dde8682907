"""DivPrune's golden cases: the selection in order, its gains, the spliced prompt, and the count of
operations."""

import torch

from .adapters import adapter


@adapter("divprune", "LlavaMetaForCausalLM.DivPrune, pairwise_cosine_similarity, "
                     "prepare_inputs_labels_for_multimodal (LAYER_INDEX=0)",
         inputs=("visual_tokens", "input_ids", "embed_tokens.weight"))
def divprune(case):
    from vtlib.pruning.divprune import distances, prune, smallest_distance
    from vtlib.tokens import VisionOutputs
    from vtlib.tokens.greedy import greedy_maxmin

    c, t = case.config, case.tensors
    tokens, ids, table = t["visual_tokens"][None], t["input_ids"][0], t["embed_tokens.weight"]
    vision = VisionOutputs(tokens, (1, tokens.shape[1]), torch.nn.Identity(), num_prefix=0)
    plan = prune(vision, c["SUBSET_RATIO"])
    index, gains = greedy_maxmin(tokens, c["SUBSET_RATIO"])
    kept = plan.apply(tokens)
    # the release: a fixed offset, SYS_TOKEN_LEN
    at = (ids == c["image_token_index"]).nonzero()[0, 0]
    return {"distance": distances(tokens)[0], "selected_order": index[0], "gain": gains[0],
            "min_pairwise_distance": smallest_distance(kept)[0],
            "inputs_embeds": torch.cat([table[ids[:at]], kept[0], table[ids[at + 1 :]]])[None]}


@adapter("divprune", "find_flop, find_tflop_ratio", inputs=("settings",))
def tflops(case):
    from vtlib.tokens.cost import decoder_flops, tokens_per_layer

    full, pruned = [], []
    for after, ratio, visual, text, layers, dim, hidden in case.tensors["settings"].tolist():
        after, visual, text, layers, dim = (int(x) for x in (after, visual, text, layers, dim))
        hidden = int(hidden)
        keep = visual - round((1 - ratio) * visual)
        full.append(decoder_flops(tokens_per_layer(layers, visual, text), dim, hidden) / 1e12)
        cut = tokens_per_layer(layers, visual, text, [(after, keep)])
        pruned.append(decoder_flops(cut, dim, hidden) / 1e12)
    full = torch.tensor(full, dtype=torch.float64)
    pruned = torch.tensor(pruned, dtype=torch.float64)
    return {"full_tflops": full, "pruned_tflops": pruned, "ratio_percent": 100 * pruned / full}
