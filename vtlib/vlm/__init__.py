"""TinyVLM, a small vision-language model on which pruning is a real question, and the decoder that
can be cut on the way."""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    __path__,
    {
        "Answers": "vtlib.vlm.tinyvlm",
        "Cache": "vtlib.vlm.state",
        "Decoder": "vtlib.vlm.decoder",
        "Encoder": "vtlib.vlm.encoder",
        "Prefill": "vtlib.vlm.state",
        "State": "vtlib.vlm.state",
        "TinyVLM": "vtlib.vlm.tinyvlm",
        "Transition": "vtlib.vlm.state",
    },
)
