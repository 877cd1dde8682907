"""From vectors to numbers and back: one result and one way to decode for every quantiser."""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".contract": (
        "Quantized", "Quantizer", "digits_to_index", "index_to_digits", "perplexity", "rotation",
        "straight_through", "used",
    ),
    ".dimwise": ("DimensionWise",),
    ".fsq": ("FSQ",),
    ".ibq": ("IBQ",),
    ".kl": ("DiagonalGaussian", "KLBottleneck", "Sampled"),
    ".lfq": ("BSQ", "LFQ"),
    ".lookup": ("nearest",),
    ".residual": ("MultiScaleQuantizer", "ResidualQuantizer"),
    ".vq": ("VectorQuantizer",),
})
