"""Pictures of plans, grades of methods, and the pruning bench.

    from vtlib.teach import pruning

    grades = pruning.Grades(model, vision, exam).add(["random", "divprune"], keeps=(8, 28))
    pruning.show_ranking(grades, 28, "Who answers best?")
    pruning.show_over_keep(grades, "What more tokens bring")
    pruning.draw(ax, image, plan, grid)
    pruning.trial(model, vision, "divprune", 28, "is there a crab?")
    pruning.bench(model, exam).show()

`Grades` asks a whole exam, a budget and a method at a time, and keeps the answers; `Lead` says
whether a difference is more than noise. `draw` shows dropped patches in grey, merged ones in the
colour of their slot, roles framed; `outline` surrounds an object. `look_inside` reads scores in the
decoder. `asking` holds what stays for each question or a stranger's, `dual` pictures of the small
dual encoder.
`trial` is one run with its answer, probability, tokens, FLOPs, cache and time; `bench` is
the widget over all methods of `vtlib.pruning.registry`.
"""

from ..._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".asking": (
        "kept_for_questions", "recall_for_questions", "recall_of", "right_when_hearing",
        "strange_captions", "strange_questions",
    ),
    ".charts": (
        "LOOKS", "pairs", "ranking", "show_favourites", "show_measures", "show_over_keep",
        "show_pairs", "show_ranking",
    ),
    ".choices": ("order_panel", "plane", "score_panel"),
    ".dual": (
        "by_role", "group_panel", "merged_patches", "outlier_dots", "recovery_panel",
        "show_captioned", "show_gone",
    ),
    ".grades": ("Grades", "Lead", "between", "beyond", "lead", "over_pictures"),
    ".inside": (
        "asked_objects", "favourites", "last_word", "late_chance", "look_inside",
        "states_by_layer",
    ),
    ".layers": (
        "pyramid_panel", "role_panel", "show_by_layer", "show_neighbours", "show_roles",
        "show_votes",
    ),
    ".layers_inside": ("ramp_panel", "transition_panel"),
    ".mechanisms": ("nudge_panel", "quota_panel"),
    ".panels": ("bench", "sheet"),
    ".plans": (
        "COLOURS", "draw", "legend", "outline", "paint", "plan_row", "reach", "with_noise",
    ),
    ".trials": ("Trial", "bill", "trial"),
})
