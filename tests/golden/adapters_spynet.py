"""SPyNet as TTVSR uses it. The case stores no weights: they follow from a formula."""

import math

import torch

from .adapters import adapter, record


def formula_weights(net):
    """Parameter k (0-based), element i (1-based): s sin(12.9898 i + 78.233 (k + 1)).

    s = 1.2 / sqrt(fan in) of weights, 0.05 of biases.
    """
    for k, parameter in enumerate(net.parameters()):
        scale = 1.2 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.05
        i = torch.arange(1, parameter.numel() + 1, dtype=torch.float64)
        parameter.copy_((scale * torch.sin(12.9898 * i + 78.233 * (k + 1))).view_as(parameter))


@adapter("ttvsr", "SPyNet.forward, SPyNetBasicModule", inputs=("ref", "supp"))
def spynet(case):
    from vtlib.superres.spynet import SPyNet

    net = SPyNet(case.config.get("levels", 6)).eval()
    formula_weights(net)
    if weights := case.weights():
        net.load_state_dict(weights)
    out = {}
    for k, module in enumerate(net.basic_module):
        record(module, out, f"level{k}_residual")
    out["flow"] = net(case.tensors["ref"], case.tensors["supp"])
    return out
