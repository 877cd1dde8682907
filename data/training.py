"""What the training scripts share."""

import math


def schedule(optimizer, peak, step, total, warmup=60, floor=0.02):
    """Set the learning rate of step 0 ... total - 1: a straight rise over `warmup` steps, under one cosine from `peak` to `floor` of it.
    A group of parameters with a "scale" gets that many times the rate."""
    for group in optimizer.param_groups:
        group["lr"] = (peak * group.get("scale", 1.0) * min(1.0, (step + 1) / warmup)
                       * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / total))))
