"""The golden case of HieraTok: the mask is VAR's, and the pooling; the paper itself has no code."""

from .adapters import adapter

FUNCTION = "VAR.__init__ (attention mask lines); area pooling as in models/quant.py"


@adapter("hieratok", FUNCTION, inputs=("x", "q", "k", "v"))
def scale_causal(case):
    from vtlib.nn import attend
    from vtlib.tokenizers.hieratok import pool_scales, scale_causal_mask, scale_index

    scales, t = case.config["scales"], case.tensors
    mask = scale_causal_mask(scales)
    return {
        "allowed": mask[None, None],
        "scale_index": scale_index(scales)[None],
        "multi_scale_tokens": pool_scales(t["x"].permute(0, 2, 3, 1), scales),
        "attn_out": attend(t["q"], t["k"], t["v"], mask),
    }
