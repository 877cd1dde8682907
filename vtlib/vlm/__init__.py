"""TinyVLM, a small vision-language model on which pruning is a real question, and the decoder that
can be cut on the way."""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".decoder": ("Decoder",),
    ".encoder": ("Encoder",),
    ".image_text": ("ImageText", "WordText", "contrast"),
    ".pretrained": ("image_text_emoji",),
    ".state": ("Cache", "Prefill", "State", "Transition"),
    ".tinyvlm": ("Answers", "TinyVLM"),
})
