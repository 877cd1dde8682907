"""State dicts as people have them: wrapped by a trainer, with a prefix, or of another model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .checks import check_flag

WRAPPERS = (
    "params_ema", "params", "state_dict", "model_state_dict", "model", "module", "net_g",
    "generator",
)
PREFIXES = ("module.", "_orig_mod.", "net_g.", "generator.")


def unwrap(state: Mapping[str, Any], name: str = "state") -> dict[str, Tensor]:
    """The weights inside a checkpoint, {name: tensor}, without wrappers and prefixes.

    Wrappers are entries that hold a state dict: "params_ema" (before "params", as BasicSR does),
    "state_dict", "model" and so on, also one inside another. Where names begin with "module."
    (DataParallel), "_orig_mod." (torch.compile), "net_g." or "generator." (trainers with several
    nets), those are taken, without the prefix, and the rest (step counters, discriminators) goes. A
    bare state dict passes through. ValueError when no tensors are inside.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{name} is a {type(state).__name__} but needs to be a state dict")
    inner = [state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)]
    if inner:
        return unwrap(inner[0], name)
    for prefix in PREFIXES:
        inside = {key: value for key, value in state.items() if key.startswith(prefix)}
        if inside:
            return unwrap({key[len(prefix):]: value for key, value in inside.items()}, name)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{name} holds no tensors, only {sorted(map(str, state))[:5]}")
    return tensors


def _tensors(state: Any, name: str) -> Mapping[str, Tensor]:
    if not isinstance(state, Mapping):
        raise ValueError(f"{name} is a {type(state).__name__} but needs to be a state dict")
    others = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{name} has {others[0]!r}, which is no tensor: `unwrap` takes it out")
    return state


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], strict: bool = True, name: str = "state"
) -> None:
    """`model.load_state_dict(state)` with a ValueError that says what does not fit.

    Args:
        model: what is to be filled.
        state: {name: tensor}.
        strict: False lets names be missing or left over, but not all of them: when not one name
            fits there is nothing to load, and that is a ValueError too. So are other shapes.
        name: what the message calls the state.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__} but needs to be a torch module")
    strict = check_flag(strict, "strict")
    state, own = _tensors(state, name), model.state_dict()
    fitting = own.keys() & state.keys()
    if not fitting:
        raise ValueError(
            f"{name}: no key fits; it has {sorted(state)[:3]} ({len(state)}), "
            f"the model {sorted(own)[:3]} ({len(own)})"
        )
    wrong = [key for key in sorted(fitting) if state[key].shape != own[key].shape]
    if wrong:
        key, count = wrong[0], len(wrong)
        raise ValueError(
            f"{name} does not fit: {key} is {tuple(state[key].shape)}, the model's "
            f"{tuple(own[key].shape)} ({count} of other shapes)"
        )
    missing, unexpected = model.load_state_dict(state, strict=False)
    if strict and (missing or unexpected):
        raise ValueError(
            f"{name} does not fit: missing {sorted(missing)[:5]} ({len(missing)}), "
            f"unexpected {sorted(unexpected)[:5]} ({len(unexpected)})"
        )
