"""Attention takes the fused kernel, or says why not: there is no third way in the source."""

import ast

from tools.notebook import ROOT

FUSED = {
    "vtlib/nn/attention.py": "`attend`, for all of vtlib",
    "vtlib/hub/dat.py": "channels attend with a scale of their own, which `attend` has not",
    "vtlib/tokenizers/tokenbridge_head.py": "dropout of the weights, which `attend` has not",
    "vtlib/vlm/layers.py": "causal without a mask: the kernel's own way, which `attend` has not",
}
WRITTEN_DOWN = {
    "vtlib/nn/attention.py": "the weights are asked for",
    "vtlib/generation/sampling.py": "probabilities of codes, no attention",
    "vtlib/hub/onnx_graph.py": "a node of a graph that is run as it was stored",
    "vtlib/hub/tower.py": "methods read the weights",
    "vtlib/multiscale/tokenformer.py": "a norm over parameter tokens, no softmax of tokens",
    "vtlib/pruning/aim.py": "the method reads the weights: PageRank over them",
    "vtlib/pruning/crossget.py": "two numbers a pair, no attention",
    "vtlib/pruning/fastervlm.py": "the method reads the weights: the row of [CLS]",
    "vtlib/pruning/others.py": "how much each word sees the picture, no attention",
    "vtlib/pruning/pretrained.py": "the row of [CLS], for the widgets",
    "vtlib/pruning/recoverable.py": "the method reads the weights",
    "vtlib/pruning/transprune.py": "a softmax over tokens' turns, no attention",
    "vtlib/quantize/ibq.py": "the choice among codes, no attention",
    "vtlib/quantize/vq.py": "how sure a vector is of its code, for the loss by entropy",
    "vtlib/segmentation/camouflage.py": "weights and probabilities of classes, no attention",
    "vtlib/segmentation/oneformer_tasks.py": "probabilities of classes, no attention",
    "vtlib/segmentation/matching.py": "probabilities of classes, no attention",
    "vtlib/segmentation/split_matching.py": "probabilities of classes, no attention",
    "vtlib/segmentation/expedit.py": "the assignment of tokens to centres, no attention",
    "vtlib/superres/uplift.py": "weights of neighbours without queries and keys",
    "vtlib/vlm/encoder.py": "the row of [CLS] that pruners read",
    "vtlib/vlm/state.py": "methods read the weights",
    "vtlib/vlm/tinyvlm.py": "texts behind one prefix in one softmax; probabilities of words",
}


def calls(name):
    """Files of vtlib, teach left out, that call a function or method of that name."""
    found = set()
    for path in (ROOT / "vtlib").rglob("*.py"):
        if "teach" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = getattr(node, "func", None)
            if name in (getattr(called, "attr", None), getattr(called, "id", None)):
                found.add(path.relative_to(ROOT).as_posix())
    return found


def test_the_fused_kernel_is_called_in_one_place():
    assert calls("scaled_dot_product_attention") == set(FUSED)


def test_every_softmax_has_its_reason():
    assert calls("softmax") == set(WRITTEN_DOWN)


def test_no_attention_of_torchs_own():
    assert not calls("MultiheadAttention")
