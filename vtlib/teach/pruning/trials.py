"""One run of a method on one picture and question, with its bill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtlib.nn.checks import check_callable, check_int
from vtlib.pruning.bench import Reduced, reduce
from vtlib.teach.meter import timed
from vtlib.tokens import Plan, Stage, VisionOutputs
from vtlib.tokens.cost import cache_bytes, decoder_flops, tokens_per_layer
from vtlib.vlm.tinyvlm import TinyVLM, words


@dataclass
class Trial:
    """What a method made of one picture and question.

    Args:
        plan: from the encoder's patches to what is left in the end.
        answer: what the model says.
        probability: of all words of the answer.
        first: (vocabulary,), probabilities of the first word.
        lengths: tokens each decoder layer reads, words included.
        flops: prefill of the decoder, a multiply-add counts 2.
        cache: bytes of keys and values after it.
        choosing: processor seconds, the least of `repeat` runs.
        reading: processor seconds of the prefill, the least of `repeat` runs.
        visual: visual tokens in the first and in the last layer.
    """

    plan: Plan
    answer: str
    probability: float
    first: Tensor
    lengths: list[int]
    flops: int
    cache: int
    choosing: float
    reading: float
    visual: tuple[int, int]


def bill(
    model: TinyVLM,
    stages: Sequence[Stage],
    num_visual: int,
    num_text: int,
    bytes_per_value: int = 4,
) -> tuple[list[int], int, int]:
    """(tokens of each layer, FLOPs, cache bytes) of the decoder's prefill, counted.

    Args:
        model: TinyVLM.
        stages: the cuts inside its decoder.
        num_visual: visual tokens that are handed over.
        num_text: words of the question; they and <start> always stay.
        bytes_per_value: of keys and values.
    """
    layers = model.decoder.layers
    lengths = tokens_per_layer(len(layers), num_visual, 1 + num_text, stages)
    hidden = layers[0].mlp.gate_proj.out_features
    kv_width = layers[0].self_attn.num_kv_heads * model.decoder.head_dim
    multiplies = decoder_flops(lengths, model.decoder.embed_dim, hidden, gated=True)
    return lengths, 2 * multiplies, cache_bytes(lengths, kv_width, bytes_per_value)


def _timed(fn: Callable, repeat: int):
    """(what `fn` returned last, the least of its processor seconds): what else the machine does
    counts little."""
    runs = [timed(fn) for _ in range(repeat)]
    return runs[-1][0], min(seconds for _, seconds in runs)


@torch.no_grad()
def trial(
    model: TinyVLM,
    vision: VisionOutputs,
    method,
    keep: int | float,
    question: str,
    generator: torch.Generator | None = None,
    repeat: int = 1,
    choose: Callable[[], Reduced] | None = None,
) -> Trial:
    """Run `method` on one picture and one question. ValueError for more than one picture.

    Args:
        model: TinyVLM.
        vision: what its encoder made of the picture (B = 1).
        method: a name, or anything `registry.find` knows.
        keep: the budget, a number of tokens or a fraction.
        question: a text.
        generator: for methods that draw; each repeat draws the same.
        repeat: how often choosing and reading are timed.
        choose: what chooses, instead of `bench.reduce`.
    """
    repeat = check_int(repeat, "repeat", 1)
    if choose is not None:
        check_callable(choose, "choose", "a function without arguments, or None")
    pictures = len(vision.tokens)  # projected before the clock starts
    if pictures != 1:
        raise ValueError(
            f"vision holds {pictures} pictures; a trial is about one:"
            " vision.rows(torch.tensor([k]))"
        )
    seed = None if generator is None else generator.get_state()

    def chosen() -> Reduced:
        if seed is not None:
            generator.set_state(seed)
        if choose is not None:
            return choose()
        return reduce(model, vision, method, keep, [question], generator)

    done, choosing = _timed(chosen, repeat)
    prompt = (done.tokens, [question], done.stages, done.positions)
    (_, run), reading = _timed(lambda: model.prefill(*prompt), repeat)
    whole, said = done.whole(run), model.answer(*prompt)
    num_text, size = len(words(question)), done.tokens.element_size()
    lengths, flops, cache = bill(model, done.stages, done.tokens.shape[1], num_text, size)
    return Trial(
        plan=whole if len(whole) else done.plan,
        answer=said.texts[0],
        probability=said.probability.item(),
        first=said.first[0],
        lengths=lengths,
        flops=flops,
        cache=cache,
        choosing=choosing,
        reading=reading,
        visual=(lengths[0] - 1 - num_text, lengths[-1] - 1 - num_text),
    )
