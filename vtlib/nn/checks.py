"""Bad input ends here: each check raises a ValueError that names the argument, what it got and what
it needs.

All but `check_finite` and the bounds of indices look at types and shapes only, so they cost
nothing, work on the meta device and under torch.compile.
"""

import math
import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor


def check_int(
    value: Any, name: str, least: int | None = None, most: int | None = None
) -> int:
    """`value` as an int: anything that is an integer, of Python, NumPy or torch; booleans are none.

    Args:
        value: what was given.
        name: what the message calls it.
        least: the smallest value allowed; None: no bound.
        most: the largest value allowed; None: no bound.

    Raises ValueError for what is no integer (64.0 and "64" too) and for values out of bounds.
    """
    if least is None and most is None:
        needs = "an integer"
    elif most is None:
        needs = f"an integer of at least {least}"
    elif least is None:
        needs = f"an integer of at most {most}"
    else:
        needs = f"an integer from {least} to {most}"
    number = _as_int(value)
    if number is None:
        raise ValueError(f"{name}={value!r} ({type(value).__name__}): needs {needs}")
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name}={number}: needs {needs}")
    return number


def check_ints(
    values: Any, name: str, least: int | None = None, length: int | None = None
) -> tuple[int, ...]:
    """`values` as a tuple of ints, each as `check_int` takes it.

    Args:
        values: a sequence, or a one-dimensional array or tensor.
        name: what the message calls it; an entry is name[i].
        least: the smallest value allowed; None: no bound.
        length: how many there must be; None: any number.
    """
    entries = _entries(values, name, "integers", length)
    return tuple(check_int(entry, f"{name}[{i}]", least) for i, entry in enumerate(entries))


def _entries(values: Any, name: str, kind: str, length: int | None) -> list[Any]:
    needs = f"a sequence of {kind if length is None else f'{length} {kind}'}"
    if not isinstance(values, (Mapping, Set)):                           # those have no order
        entries = check_list(values, name, needs)
        if length is None or len(entries) == length:
            return entries
    raise ValueError(f"{name}={values!r}: needs {needs}")


def check_list(values: Any, name: str, needs: str = "a list") -> list[Any]:
    """`values` as a list. ValueError for a string, which has letters, and what has no entries.

    Args:
        values: a list, a tuple or the like.
        name: what the message calls it.
        needs: what the message asks for.
    """
    if isinstance(values, (str, bytes)) or not is_several(values):
        raise ValueError(f"{name}={values!r}: needs {needs}")
    return list(values)


def is_several(value: Any) -> bool:
    """Whether it has entries: a list, say; an array or a tensor without axes has none."""
    return isinstance(value, Iterable) and getattr(value, "ndim", None) != 0


def check_odd(value: Any, name: str) -> int:
    """`value` as an int. ValueError unless it is odd and positive: a kernel with a middle."""
    number = check_int(value, name, 1)
    if number % 2 == 0:
        raise ValueError(f"{name}={number}: needs an odd number")
    return number


def _as_int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, torch.SymInt)):            # a free size of torch.export stays free
        return value                                                     # type: ignore[return-value]
    if getattr(value, "dtype", None) is torch.bool:
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):                   # RuntimeError: on meta there is no value
        return None


def check_number(
    value: Any,
    name: str,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
) -> float:
    """`value` as a float: any finite real number, of Python, NumPy or torch; booleans are none.

    Args:
        value: what was given.
        name: what the message calls it.
        least: the smallest value allowed.
        most: the largest value allowed.
        above: what it must exceed, in place of least.

    Raises ValueError for what is no number ("0.5" too), for NaN, and for values out of bounds.
    """
    number = _as_number(value)
    if number is not None and math.isfinite(number) and least <= number <= most and number > above:
        return number
    needs = "a finite number"
    if above > -math.inf:
        needs += f" above {above}"
    elif least > -math.inf:
        needs += f" of at least {least}"
    if most < math.inf:
        needs += f" and at most {most}" if max(least, above) > -math.inf else f" of at most {most}"
    raise ValueError(f"{name}={value!r} ({type(value).__name__}): needs {needs}")


def check_numbers(
    values: Any,
    name: str,
    least: float = -math.inf,
    most: float = math.inf,
    length: int | None = None,
) -> tuple[float, ...]:
    """`values` as a tuple of floats, each as `check_number` takes it.

    Args:
        values: a sequence, or a one-dimensional array or tensor.
        name: what the message calls it; an entry is name[i].
        least: the smallest value allowed.
        most: the largest value allowed.
        length: how many there must be; None: any number.
    """
    entries = _entries(values, name, "numbers", length)
    return tuple(
        check_number(entry, f"{name}[{i}]", least, most) for i, entry in enumerate(entries)
    )


def _as_number(value: Any) -> float | None:
    try:
        plain = value.item() if getattr(value, "ndim", None) == 0 else value
        real = isinstance(plain, numbers.Real) and not isinstance(plain, bool)
        return float(plain) if real else None
    except (RuntimeError, OverflowError):              # on the meta device; beyond all floats
        return None


def check_flag(value: Any, name: str) -> bool:
    """`value` as a bool: True or False, of Python, or a 0-dim one of NumPy or torch.

    ValueError for anything else: "no" is true to Python, and so is 0.5.
    """
    flag = as_flag(value)
    if flag is None:
        raise ValueError(f"{name}={value!r} ({type(value).__name__}): needs True or False")
    return flag


def as_flag(value: Any) -> bool | None:
    """`value` as a bool, and None for what is no flag, see `check_flag`."""
    if value is True or value is False:
        return value
    try:
        plain = value.item() if getattr(value, "ndim", None) == 0 else None
    except RuntimeError:                                        # on meta there is no value
        return None
    return plain if isinstance(plain, bool) else None


def check_callable(value: Any, name: str, needs: str = "a function") -> None:
    """Raise unless `value` can be called.

    Args:
        value: what was given.
        name: what the message calls it.
        needs: what the message asks for.
    """
    if not callable(value):
        raise ValueError(f"{name} is {describe(value)} but needs to be {needs}")


def check_device(device: Any, name: str = "device") -> torch.device:
    """A device that torch can put tensors on; None is the CPU, whatever the default device is.

    ValueError for what names no device, and for one that this machine does not have.
    """
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, device=found)
        return found
    except (RuntimeError, TypeError, AssertionError) as error:   # the last: torch has no CUDA
        raise ValueError(f"{name}={device!r}: {_first(error)}") from None


def check_generator(generator: Any, optional: bool = False) -> None:
    """Raise unless `generator` is a torch.Generator, or None where it is optional: elsewhere None
    would draw from the global numbers."""
    if isinstance(generator, torch.Generator) or (optional and generator is None):
        return
    needs = "a torch.Generator, or None" if optional else "a torch.Generator"
    raise ValueError(f"generator is a {type(generator).__name__}: needs {needs}")


def check_float(x: Any, name: str) -> None:
    """Raise unless `x` is a floating torch tensor; the message says how to make one.

    NumPy arrays, lists and integer tensors (bytes of a picture, say) end here instead of giving
    wrong numbers or an error from deep inside.
    """
    if not isinstance(x, Tensor):
        kind = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
        hint = ""
        if kind == "numpy.ndarray":
            hint = f"; torch.from_numpy({name}).float() makes one"
        elif kind in ("list", "tuple"):
            hint = f"; torch.tensor({name}) makes one of numbers, torch.stack({name}) of tensors"
        raise ValueError(f"{name} is a {kind} but needs to be a floating torch tensor{hint}")
    if not x.dtype.is_floating_point:
        hint = f"{name}.float()"
        if x.dtype == torch.uint8:
            hint += f", or {name}.float() / 255 for the bytes of a picture"
        raise ValueError(f"{name} is {x.dtype} but needs a floating dtype: {hint}")


def _first(error: Exception) -> str:
    """What an error of torch says first: the rest lists all there is."""
    return str(error).splitlines()[0].partition(". ")[0]


def check_dtype(x: Tensor, weight: Any, name: str) -> None:
    """Raise unless `x` has the dtype of the weights that it meets first.

    Under autocast other dtypes are fine, float64 excepted, which it leaves as it is. Weights that
    are only stored, as integers or as floats of one byte, or packed away behind a function, say
    nothing about what their layer computes in: they pass.

    Args:
        x: what was given.
        weight: of the layer that reads it.
        name: what the message calls it.
    """
    if not isinstance(weight, Tensor) or x.dtype == weight.dtype:
        return
    if not weight.is_floating_point() or weight.element_size() < 2:
        return
    if autocasts(x.device) and torch.float64 not in (x.dtype, weight.dtype):
        return
    raise ValueError(
        f"{name} is {x.dtype} but the model's weights are {weight.dtype}: "
        f"{name}.to({weight.dtype}) or model.to({x.dtype}) makes them agree"
    )


def autocasts(device: torch.device) -> bool:
    """Whether autocast chooses the dtype of products on this device now."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def check_index(
    x: Any,
    name: str,
    axes: str = "",
    sizes: Sequence[int | None] | None = None,
    stop: int | None = None,
    least: int = 0,
) -> None:
    """Raise unless `x` is a tensor of int64 with these axes and, where a look at its values waits
    for nothing, within these bounds.

    Args:
        x: what was given.
        name: what the message calls it.
        axes: what each axis is, "(B, K)" say; "": any axes.
        sizes: how long each must be, None where any length will do; None: all of any length. Take
            them from a shape: len() of a tensor would fix a free size of torch.export.
        stop: one more than the largest value allowed; None: no bounds.
        least: the smallest value allowed.
    """
    if not (isinstance(x, Tensor) and x.dtype == torch.int64 and _has_axes(x.shape, axes, sizes)):
        needs = f"torch.int64 {axes}" if axes else "a torch.int64 tensor"
        if sizes is not None and any(size is not None for size in sizes):
            letters = zip(_letters(axes), sizes, strict=True)
            shown = [letter if size is None else str(size) for letter, size in letters]
            needs += f" = ({', '.join(shown)}{',' if len(shown) == 1 else ''})"
        raise ValueError(f"{name} is {describe(x)} but needs to be {needs}")
    if stop is not None and at_hand(x):
        check_range(x, name, least, stop)


def _letters(axes: str) -> list[str]:
    """["B", "heads", "N"] of "(B, heads, N)", ["K"] of "(K,)"."""
    return axes.strip("()").rstrip(",").split(", ")


def _has_axes(shape: torch.Size, axes: str, sizes: Sequence[int | None] | None) -> bool:
    if sizes is None:
        return not axes or len(shape) == len(_letters(axes))
    if len(shape) != len(sizes):
        return False
    for want, have in zip(sizes, shape, strict=True):   # `all` of a generator takes twice the time
        if want is not None and want != have:
            return False
    return True


def check_range(index: Tensor, name: str, least: int, stop: int) -> bool:
    """Raise unless all of `index` lie in least ... stop - 1. It reads the values (a GPU is waited
    for), so it passes on the meta device and while compiling or exporting.

    Args:
        index: (...) long.
        name: what the message calls it.
        least: the smallest that is allowed.
        stop: one more than the largest that is allowed.

    Returns whether it saw the values and none is negative.
    """
    if index.numel() == 0 or not readable(index):
        return False
    low, high = (int(bound) for bound in index.aminmax())
    if low >= least and high < stop:
        return low >= 0
    place = ((index < least) | (index >= stop)).nonzero()[0].tolist()
    raise ValueError(
        f"{name}{place or ''}={int(index[tuple(place)])} is no place: "
        f"it must lie in {least} ... {stop - 1}"
    )


def check_finite(x: Tensor, name: str) -> None:
    """Raise if `x` holds a NaN or an infinity; the message says how many and where the first is.

    It reads the values, so it looks in eager mode only: on the meta device, under torch.compile,
    torch.export and tracing, and while a CUDA graph is captured it passes.
    """
    if not isinstance(x, Tensor):
        check_float(x, name)
    if not readable(x) or x.numel() == 0:
        return
    low, high = x.detach().aminmax()             # one pass; isfinite alone takes 15 times as long
    if math.isfinite((high - low).item()):
        return
    finite = x.isfinite()
    if finite.all():
        return
    first = tuple((~finite).nonzero()[0].tolist())
    count = int((~finite).sum())
    raise ValueError(
        f"{name} {tuple(x.shape)} has {count} non-finite values, the first {x[first].item()} at "
        f"{list(first)}: every value needs to be finite (half precision overflows at 65504)"
    )


def readable(x: Tensor) -> bool:
    """Whether the values of `x` are there to be looked at."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    if x.is_meta or type(x).__name__ == "FakeTensor":
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def at_hand(x: Tensor) -> bool:
    """Whether a look at the values of `x` waits for nothing."""
    return x.device.type == "cpu" and readable(x)


def check_images(images: Tensor, in_chans: int | None = 3, name: str = "images") -> None:
    """Raise unless `images` is a floating batch (B, in_chans, H, W), not empty.

    Args:
        images: what was given.
        in_chans: channels that are needed; None: any number.
        name: what the message calls it.
    """
    check_float(images, name)
    shape = tuple(images.shape)
    if len(shape) != 4:
        raise ValueError(
            f"{name} has shape {shape} but needs 4 axes "
            f"(B, {'C' if in_chans is None else in_chans}, H, W); a single image needs images[None]"
        )
    if in_chans is not None and shape[1] != in_chans:
        last = "; the channels come last here, permute them to axis 1"
        hint = last if shape[3] == in_chans else ""
        raise ValueError(
            f"{name} has {shape[1]} channels (shape {shape}) but the model needs {in_chans}{hint}"
        )
    if 0 in shape:
        raise ValueError(
            f"{name} is empty: shape {shape}; at least one image and one pixel are needed"
        )


def check_axes(x: Any, name: str, axes: str) -> None:
    """Raise unless `x` is floating with the axes that `axes` names, "(B, heads, N)" say, none of
    them empty.

    Args:
        x: what was given.
        name: what the message calls it.
        axes: what each axis is, in brackets.
    """
    check_float(x, name)
    shape, count = tuple(x.shape), len(_letters(axes))
    if len(shape) != count:
        raise ValueError(f"{name} has shape {shape} but needs {count} axes {axes}")
    if 0 in shape:
        raise ValueError(f"{name} is empty: shape {shape}; needs {axes}, each at least 1")


def check_tokens(x: Tensor, dim: int | None = None, name: str = "tokens") -> None:
    """Raise unless `x` is floating (B, N, D), none of them empty.

    Args:
        x: what was given.
        dim: the D that is needed; None: any.
        name: what the message calls it.
    """
    check_axes(x, name, "(B, N, D)")
    if dim is not None and x.shape[2] != dim:
        raise ValueError(
            f"{name} has {x.shape[2]} channels (shape {tuple(x.shape)}) but this layer needs "
            f"D = {dim}"
        )


def check_channels(x: Tensor, dim: int, name: str = "x") -> None:
    """Raise unless `x` is floating (..., D).

    Args:
        x: what was given.
        dim: the D that is needed.
        name: what the message calls it.
    """
    check_float(x, name)
    if x.dim() < 1 or x.shape[-1] != dim:
        raise ValueError(f"{name} has shape {tuple(x.shape)} but needs (..., {dim})")


def check_map(x: Tensor, name: str = "x") -> None:
    """Raise unless `x` is a tensor (B, H, W, C), channels last."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise ValueError(f"{name} is {describe(x)} but needs to be a tensor (B, H, W, C)")


def describe(x: Any) -> str:
    """What was given, for a message: dtype and shape of a tensor, or the kind of thing it is."""
    if isinstance(x, Tensor):
        return f"{x.dtype} {tuple(x.shape)}"
    return f"a {type(x).__module__}.{type(x).__qualname__}".replace("builtins.", "")


def check_multiple(
    size: Sequence[int], multiple: int | tuple[int, int], name: str = "image size"
) -> None:
    """Raise unless both sides of `size` are multiples of `multiple`, an integer of at least 1.

    Args:
        size: (H, W).
        multiple: an int or a pair.
        name: what the message calls it.
    """
    several = isinstance(multiple, tuple)
    pair = check_ints(multiple if several else (multiple, multiple), "multiple", 1, length=2)
    size = check_ints(size, name, 1, length=2)
    if any(s % m for s, m in zip(size, pair, strict=True)):
        good = tuple(-(-s // m) * m for s, m in zip(size, pair, strict=True))
        raise ValueError(
            f"{name} {tuple(size)} is not a multiple of {multiple}; resize or pad it to {good}"
        )


def check_heads(embed_dim: int, num_heads: int) -> int:
    """Channels per head. ValueError unless the channels divide evenly among the heads."""
    embed_dim = check_int(embed_dim, "embed_dim", 1)
    num_heads = check_int(num_heads, "num_heads", 1)
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim={embed_dim} does not divide into num_heads={num_heads}: "
            f"each head needs the same number of channels"
        )
    return embed_dim // num_heads
