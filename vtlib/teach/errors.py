"""Raw errors of einops and torch in plain words, with their likely cause."""

import re

import einops

__all__ = ["plain_words"]

# what einops says at the end of its message -> the same in plain words; {0}, {1} are the groups
_EINOPS = {
    r"expected (\d+) dims. Received (\d+)-dim tensor": (
        "the left side of the pattern has {0} axes (a bracket is one), the tensor has {1}"
    ),
    r"can't divide axis of length (\d+) in chunks of (\d+)": (
        "an axis of length {0} is to be split, but the sizes you pass for its bracket multiply to"
        " {1}, which does not divide {0}"
    ),
    r"Shape mismatch, (\d+) != (\d+)": (
        "an axis of length {0} is to be split, but the sizes of its bracket multiply to {1}"
    ),
    r"Could not infer sizes for \{(.*)\}": (
        "of the names in one bracket at most one may be left open: pass the size of all but one"
        " of {0} as keywords"
    ),
    r"only on one side of expression \(should be on both\): \{(.*)\}": (
        "{0} stands on one side of the arrow only; rearrange moves axes, it makes and removes none"
    ),
    r"Non-unitary anonymous axes": (
        "a number other than 1 stands in the pattern; give the axis a name, and pass its size"
    ),
    r"duplicate dimension \"(.*)\"": "the name {0} stands twice on one side of the arrow",
    r"Axis (\w+) is not used in transform": "you pass {0}=..., but {0} is not in the pattern",
    r"Imbalanced parentheses": "a bracket of the pattern is not closed",
}

_TORCH = {
    r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at .* (\d+)$": (
        "two tensors meet whose axes {2} have {0} and {1} entries; one of them lacks an axis"
        " (x[:, None]), or its axes stand in another order"
    ),
    r"mat1 and mat2 shapes cannot be multiplied \((\S+) and (\S+)\)": (
        "a matrix product of {0} and {1}: the last axis of the first has to be as long as the"
        " axis before the last of the second; is a transpose missing?"
    ),
    r"Expected size for first two dimensions of batch2 tensor": (
        "a matrix product: the last axis of the first has to be as long as the axis before the"
        " last of the second; is a transpose missing?"
    ),
    r"view size is not compatible": "the tensor is not laid out in this order; use reshape",
    r"tensors used as indices must be long": "an index is not a whole number; .long() makes it one",
    r"Expected dtype int32/int64 for index": "an index is not a whole number; .long() makes it one",
    r"index (-?\d+) is out of bounds for dimension (\d+) with size (\d+)": (
        "the index {0} on axis {1}, which has {2} entries, 0 first"
    ),
    r"Sizes of tensors must match except in dimension (\d+)": (
        "torch.cat along axis {0}: all other axes have to be equally long"
    ),
    r"not implemented for '(Long|Int|Bool|Byte)'": (
        "this operation works on floating-point numbers, and the tensor holds {0}: .float() first"
    ),
    r"is missing the required \"forward\" function": (
        "this module cannot be called (a ModuleDict or ModuleList holds modules: pick one by its"
        " name or number), or its class has no `forward` yet"
    ),
}


def _find(table: dict[str, str], text: str) -> str | None:
    for pattern, words in table.items():
        match = re.search(pattern, text)
        if match:
            return words.format(*match.groups())
    return None


def plain_words(error: BaseException) -> str | None:
    """The likely cause of an error of einops or torch; None where nothing is known about it."""
    text = str(error)
    if isinstance(error, einops.EinopsError):
        words = _find(_EINOPS, text)
        pattern = re.search(r'pattern "(.*)"', text)
        shape = re.search(r"shape: torch.Size\(\[(.*)\]\)", text)
        if words and pattern and shape:
            return f'in the pattern "{pattern[1]}", for a tensor of shape ({shape[1]}): {words}'
        return words
    return _find(_TORCH, text)
