"""What a picture costs: one thread, the drawings that it shows, little memory."""

import threading

import numpy as np
import pytest
import torch

from tests.fresh import fresh
from vtlib import data
from vtlib.data import assets, backgrounds, footage, render
from vtlib.data._kept import Kept
from vtlib.data._threads import one_thread

psutil = pytest.importorskip("psutil")

EASY = list(data.EASY)


def numbers(code):
    """The numbers that `code` prints in a process of its own."""
    return [float(word) for word in fresh(code).split()]


THREADS = """
import psutil, torch
from vtlib import data
from vtlib.data import footage
torch.set_num_threads(4)
threads = lambda: print(psutil.Process().num_threads())
threads()
world = data.EmojiWorld(96)
world.classify(32, 0, clutter=1), world.scenes(32, 0, signs=0.5), world.video(2, 6, 0)
world.classify(16, 0, background="noise"), world.camouflage(16, 0), world.retrieval(4, 0)
world.mosaic(400, 400, 0), world.biomes(200, 200, 0)
world.text(16, 0), data.photographs(224), data.clip()
data.text_image("many words " * 20), footage.panned(2, 4, 128, 0, turn=2.0)
threads()
torch.rand(2_000_000) + 1
threads()
print(torch.get_num_threads())
"""


@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch without OpenMP")
def test_no_second_thread_is_woken():
    """OpenMP starts its threads at the first operator that uses them: none of ours does."""
    before, after, woken, setting = numbers(THREADS)
    assert after == before < woken and setting == 4


def test_other_threads_keep_their_number():
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyError), one_thread():
            seen.append(torch.get_num_threads())
            other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            other.start()
            other.join()
            raise KeyError
        seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert seen[1:] == [3, 3] and seen[0] in (1, 3)


MEMORY = """
import psutil, torch
from vtlib import data
world = data.EmojiWorld(96)
used = lambda: psutil.Process().memory_info().rss
start = used()
world.scenes(64, 0)
print((used() - start) / 2**20)
"""


def test_memory_of_the_first_batch():
    """34 MiB at the time of writing; all drawings and all photographs took 140."""
    assert numbers(MEMORY)[0] < 60


def test_only_what_is_shown_is_made():
    render.ATLASES.clear()
    backgrounds.VIEWS.clear()
    world = data.EmojiWorld(32, pictograms=EASY)
    world.classify(40, 0, background="plain")
    assert len(render.ATLASES) <= len(EASY) and not len(backgrounds.VIEWS)
    made = len(render.ATLASES)
    world.classify(40, 0, background="plain")
    assert len(render.ATLASES) == made
    world.classify(2, 0)
    assert 1 <= len(backgrounds.VIEWS) <= 2


def test_one_drawing_is_read_without_the_others():
    assets._unpacked.cache_clear()
    one = assets.drawing("twemoji", 1910)
    assert assets._unpacked.cache_info().currsize == 1
    assert np.array_equal(one, assets.drawings("twemoji")[-1].numpy())


def test_atlases_are_box_averages():
    """Each level of an atlas, from the drawing by reshaping in double precision."""
    for index in (3, 700, 1500):
        atlas = render.make_atlas("noto", index)
        rgba = assets.drawing("noto", index).astype(float)
        rgba[..., :3] *= rgba[..., 3:] / 255
        rest = np.ones(render.ATLAS, bool)
        for size, top, left in render.LEVELS:
            block = 64 // size
            mean = rgba.reshape(size, block, size, block, 4).mean((1, 3)).transpose(2, 0, 1)
            found = atlas[:, top : top + size, left : left + size]
            assert np.abs(found - mean).max() < 0.501
            rest[top : top + size, left : left + size] = False
        assert not atlas[:, rest].any()


def test_the_cache_is_bounded_and_forgets_the_oldest():
    kept = Kept(3000)
    for key in (1, 2, 3, 1, 4):
        kept.get(key, lambda key=key: np.full(1000, key, np.uint8))
    assert len(kept) == 3 and kept.bytes == 3000
    assert kept.get(1, lambda: None)[0] == 1                     # asked for again before 4 came
    assert kept.get(2, lambda: np.zeros(1000, np.uint8))[0] == 0      # forgotten, made again
    with pytest.raises(ValueError, match="read-only"):
        kept.get(1, lambda: None)[0] = 5
    kept.get("large", lambda: np.zeros(9000, np.uint8))
    assert len(kept) == 1


def test_many_threads_draw_the_same():
    world = data.EmojiWorld(32, artist="both")
    want = [world.scenes(4, seed).images for seed in range(6)]
    for kept in (render.ATLASES, backgrounds.VIEWS, footage.SOURCES):
        kept.clear()
    found = {}

    def draw(seed):
        found[seed] = world.scenes(4, seed).images

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], images) for seed, images in enumerate(want))
