"""TinyVLM, a small vision-language model on which pruning is a real question, and the decoder that
can be cut on the way."""

from .decoder import Cache, Decoder, Prefill, State, Transition
from .encoder import Encoder
from .tinyvlm import Answers, TinyVLM

__all__ = ["Answers", "Cache", "Decoder", "Encoder", "Prefill", "State", "TinyVLM", "Transition"]
