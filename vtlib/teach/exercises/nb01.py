"""Exercises of notebook 01, one module a paper."""

from . import nb01_crossformer, nb01_crossvit  # noqa: F401
