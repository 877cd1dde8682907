"""Three answers to "which scale should a token have?": CrossViT, CrossFormer, TokenFormer. Import the paper's module:
`from vtlib.multiscale import crossvit`."""

import importlib

_PAPERS = ("crossvit", "crossformer", "tokenformer")


def __getattr__(name):
    if name in _PAPERS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_PAPERS)}")
