"""Pictures of plans, and the pruning bench: method and budget in, picture, answer and bill out.

    from vtlib.teach import pruning

    pruning.draw(ax, image, plan, grid)
    pruning.trial(model, vision, "divprune", 28, "is there a crab?")
    pruning.bench(model, exam).show()

`draw` shows dropped patches pale, merged ones in the colour of their slot, roles framed. `trial` is
one run with its answer, probability, tokens, FLOPs, cache and time; `bench` is the widget over all
methods of `vtlib.pruning.registry`.
"""

from ..._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".panels": ("bench", "sheet"),
    ".plans": ("COLOURS", "draw", "legend", "paint"),
    ".trials": ("Trial", "bill", "trial"),
})
