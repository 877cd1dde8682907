"""Tiny models, one of each for a whole file."""

import pytest

from tests.hub.tiny import make_clip, make_llava, make_qwen


@pytest.fixture(scope="module")
def llava():
    return make_llava()


@pytest.fixture(scope="module")
def qwen():
    return make_qwen()


@pytest.fixture(scope="module")
def clip():
    return make_clip()
