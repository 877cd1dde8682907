"""Exercises of notebook 07b, one module a paper."""

from . import nb07b_catanet, nb07b_uplift  # noqa: F401
