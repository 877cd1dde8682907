"""TokBench: how two words are compared, and the means by relative size."""

import torch

from .adapters import adapter

GIVEN = (
    "text_ratio", "text_accuracy", "text_ned_similarity", "face_ratio", "face_similarity",
)  # fmt: skip


@adapter(
    "tokbench", "string_match_with_ned; summarize_text, summarize_face", inputs=GIVEN
)
def text_face_metrics(case):
    from vtlib.tokenizers.tokbench import (
        FACE_BINS,
        TEXT_BINS,
        binned,
        matches,
        similarities,
    )

    c, t, setting = case.config, case.tensors, case.config["setting"]
    for bins, name in ((TEXT_BINS, "text_bins"), (FACE_BINS, "face_bins")):
        if list(bins[setting]) != c[name]:
            raise ValueError(f"the bins of {name} are {bins[setting]}")
    pairs = c["string_pairs"]
    near = [similarities(*pair) for pair in pairs]
    results = {
        "pair_match": torch.tensor([matches(*pair) for pair in pairs]).long(),
        "pair_ned": 1 - torch.tensor(near, dtype=torch.float64),
        "pair_label_length": torch.tensor([len(written) for written, _ in pairs]),
    }
    values = {
        "t_acc": ("text_accuracy", "text_ratio", TEXT_BINS),
        "t_ned": ("text_ned_similarity", "text_ratio", TEXT_BINS),
        "f_sim": ("face_similarity", "face_ratio", FACE_BINS),
    }
    pooled = []
    for name, (value, ratio, bins) in values.items():
        score = binned(t[value], t[ratio], bins[setting])
        mean = torch.tensor([score.mean], dtype=torch.float64)
        printed = torch.cat([score.bins, mean]).round(decimals=4)     # 12.34 % in the release
        results[f"{name}_bins_mean"] = printed
        pooled.append(score.pooled)
    return results | {"pooled": torch.tensor(pooled, dtype=torch.float64)}
