"""Hooks that belong to one block: each thread for itself, and nothing of them in a copy.

A model may be copied or pickled inside a `prune` block (assisted decoding and trainers do). A hook
that is a plain function would go with it, bound to the first model, and stay for good. A `Hook`
leaves an idle one in its place, and a `Method` that is set on an instance leaves the class's own.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any


def idle(*args: Any, **kwargs: Any) -> None:
    """What a `Hook` is in a copy of its module."""


def _idle() -> Callable[..., None]:
    return idle


class Hook:
    """A function as a hook of a module; in a copy of the module, `idle`."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> Callable[..., None]:
        return idle

    def __reduce__(self) -> tuple:
        return _idle, ()


class Method:
    """A function in place of a method of one object; in a copy of it, the method of its class.

    Args:
        owner: the object.
        name: of the method.
        function: (original, *args, **kwargs).
    """

    def __init__(self, owner: Any, name: str, function: Callable[..., Any]):
        self.owner, self.name, self.function = owner, name, function
        self.original = getattr(owner, name)
        self.__wrapped__ = self.original  # `inspect.signature` says what the original takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.original, *args, **kwargs)

    def __deepcopy__(self, memo: dict) -> Callable[..., Any]:
        return getattr(memo[id(self.owner)], self.name)

    def __reduce__(self) -> tuple:
        return getattr, (self.owner, self.name)


class Hooks:
    """Everything that a block hangs on a model, and takes off again."""

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.methods: list[Method] = []

    def before(self, module: Any, function: Callable[..., Any]) -> None:
        """function(module, args, kwargs) before the module's forward; its result replaces (args,
        kwargs)."""
        self.handles.append(module.register_forward_pre_hook(Hook(function), with_kwargs=True))

    def behind(self, module: Any, function: Callable[..., Any], **options: bool) -> None:
        """function(module, args, kwargs, output) behind the forward; its result replaces the
        output."""
        self.handles.append(
            module.register_forward_hook(Hook(function), with_kwargs=True, **options)
        )

    def method(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        """Put a function in place of a method.

        Args:
            owner: an object.
            name: of its method.
            function: (original, *args, **kwargs).
        """
        method = Method(owner, name, function)
        vars(owner)[name] = method
        self.methods.append(method)

    def remove(self) -> None:
        """Take everything off again."""
        for handle in self.handles:
            handle.remove()
        for method in self.methods:
            vars(method.owner).pop(method.name, None)
        self.handles.clear()
        self.methods.clear()


_BUSY: weakref.WeakSet = weakref.WeakSet()  # models that a block hangs on
_ENTERING = threading.Lock()


@contextlib.contextmanager
def alone(model: Any, doing: str) -> Iterator[Hooks]:
    """Hooks for one block on `model`, taken off at its end. ValueError where another block is open,
    in whatever thread."""
    with _ENTERING:
        if model in _BUSY:
            raise ValueError(
                f"model={type(model).__name__} is {doing} already: leave that block first"
            )
        _BUSY.add(model)
    hooks = Hooks()
    try:
        yield hooks
    finally:
        hooks.remove()
        _BUSY.discard(model)


class Own(threading.local):
    """Base of classes whose fields each thread has for itself. A subclass declares them with the
    value that they have in a thread that has set nothing; other names are an AttributeError."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} declares no field {name!r}")
        super().__setattr__(name, value)


class Members:
    """The threads of a block: the one that entered it, and those that were started since.

    A thread that ran before (a server's, a pool's) may or may not be meant: its forward is refused
    rather than pruned, or not pruned, without a word.
    """

    def __init__(self) -> None:
        here = threading.current_thread()
        self.others = weakref.WeakSet(t for t in threading.enumerate() if t is not here)

    def check(self) -> None:
        """ValueError in a thread that was there before the block."""
        here = threading.current_thread()
        if here in self.others:
            raise ValueError(
                f"thread {here.name!r} was running before another thread began to prune this "
                "model: start it inside the block to prune there too, or give it a model of its "
                "own (copy.deepcopy(model) is not pruned)"
            )
