"""The notebooks of the course, each read once: the tests look at them and change nothing."""

import functools

import pytest

from tools.notebook import paths, read

read_once = functools.cache(read)


@pytest.fixture(params=paths(), ids=lambda p: p.stem)
def path(request):
    return request.param


@pytest.fixture
def nb(path):
    return read_once(path)
