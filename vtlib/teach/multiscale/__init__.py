"""Pictures and widgets of the notebooks on multi-scale attention.

    from vtlib.teach import multiscale

    multiscale.show_grids(photo, sizes=(240, 224), patches=(12, 16))
    multiscale.group_panel(group_of, reach).show()

What begins with `show_` publishes one figure with its alt text; what ends in `_panel` returns a
`teach.Panel`. None of them computes what the notebook teaches: functions and numbers come in.
"""

from ..._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".branches": ("fusion_cost_panel", "show_answers", "show_grids", "visit_panel"),
    ".groups": ("bias_panel", "group_panel", "kernel_panel", "show_groups", "show_padding"),
    ".models": ("guess_panel", "lost_and_sure", "show_by_size", "show_fusions"),
    ".pairs": ("growth_panel", "pair_panel"),
    ".patches": ("show_cuts", "show_shares", "show_spread", "unequal_scene"),
    ".trials": (
        "all_attention_flops", "bias_errors", "bias_tables", "bill", "exchange_flops", "fit_bias",
        "race", "share_right", "stored_scores", "three_biases", "two_starts",
    ),
})
