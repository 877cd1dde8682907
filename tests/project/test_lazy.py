"""Packages: by attribute, by star, by tab; nothing is loaded that was not asked for."""

import functools
import importlib
import pkgutil

import pytest

import vtlib
from tests.fresh import fresh
from tools import papers

FAMILIES = sorted({"vit", "vlm", *(file.split("/")[1] for file in papers.files().values())})
EXTRAS = {"teach"}                                              # needs what [course] installs


def printed(code):
    """The words that `code` prints in a process of its own."""
    return fresh(code).split()


def test_every_package_is_an_attribute_in_a_fresh_process():
    found = {m.name for m in pkgutil.iter_modules(vtlib.__path__) if not m.name.startswith("_")}
    assert {"superres", "checkpoints", *FAMILIES} <= found
    names = sorted(found - EXTRAS)
    code = f"import vtlib; [getattr(vtlib, n) for n in {names}]; print(*dir(vtlib))"
    assert found <= set(printed(code))


STAR = """
from vtlib import {family}
for name in {modules}:
    getattr({family}, name)
shown = set(dir({family}))
star = {{}}
exec("from vtlib.{family} import *", star)
print(*({modules} - shown), *({modules} - star.keys()))
"""


def test_modules_of_the_families():
    """Each is an attribute, in `dir` and in a star import; one process for all families."""
    modules = {
        family: {m.name for m in pkgutil.iter_modules(getattr(vtlib, family).__path__)}
        for family in FAMILIES
    }
    assert all(modules.values())
    code = "".join(STAR.format(family=family, modules=modules[family]) for family in FAMILIES)
    assert printed(code) == []


TEACH = ("Wrong", "exercise", "figure", "show", "table", "grid", "setup", "panel", "flops")


def test_names_of_teach_are_what_they_say_when_its_modules_came_first():
    first = "".join(f"import vtlib.teach.{name}; " for name in ("widgets", "pruning.panels"))
    code = (f"{first}from vtlib import teach; "
            f"print(all(callable(getattr(teach, n)) for n in {TEACH}), *dir(teach))")
    got = printed(code)
    assert got[0] == "True" and set(TEACH) <= set(got)


def test_no_name_of_a_package_is_that_of_a_module_beside_it():
    """Importing the module would put it in the place of the name."""
    packages = [m.name for m in pkgutil.walk_packages(vtlib.__path__, "vtlib.") if m.ispkg]
    assert "vtlib.nn" in packages
    for name in packages:
        names = list(getattr(importlib.import_module(name), "__all__", ()))
        assert len(set(names)) == len(names), name


def test_teach_draws_nothing_before_it_is_asked_to():
    code = "import sys; from vtlib import teach; print('matplotlib' in sys.modules); teach.figure"
    assert printed(f"{code}; print('matplotlib' in sys.modules)") == ["False", "True"]


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(AttributeError, match="'vtlib' has no attribute 'prunning'.*pruning"):
        getattr(vtlib, "prun" + "ning")
    with pytest.raises(AttributeError, match="has no attribute 'catanett'.*catanet.*psnr"):
        getattr(vtlib.superres, "catanet" + "t")
    assert vtlib.superres.psnr is vtlib.superres.quality.psnr


@functools.cache
def loaded(module):
    """Modules of vtlib that come with this one, in a process of its own."""
    code = f"import sys, {module}; print(*(m for m in sys.modules if m.startswith('vtlib.')))"
    return set(printed(code))


def test_import_vtlib_loads_nothing():
    assert loaded("vtlib") == {"vtlib._lazy"}
    heavy = ("torch", "numpy", "einops")
    assert not printed(f"import sys, vtlib; print(*(m for m in {heavy} if m in sys.modules))")


def test_one_pruning_method_is_light():
    """No decoder, encoder, TinyVLM or EmojiWorld comes with a file of eighty lines."""
    modules = loaded("vtlib.pruning.divprune")
    assert {name.split(".")[1] for name in modules} == {"_lazy", "nn", "tokens", "pruning"}
    assert {name for name in modules if name.startswith("vtlib.nn.")} == {"vtlib.nn.checks"}


def test_a_first_scene_loads_no_network_and_no_other_generator():
    code = ("import sys, vtlib.data; vtlib.data.EmojiWorld(16).scenes(1, 0); "
            "print(*(m for m in sys.modules if m.startswith(('vtlib.', 'einops', 'safetensors'))))")
    own, others = set(), set()
    for name in printed(code):
        (own if name.startswith("vtlib.data") else others).add(name)
    assert others == {"vtlib._lazy", "vtlib.checkpoints", "vtlib.nn", "vtlib.nn.checks"}
    asked_for = ("biomes", "camouflage", "mosaic", "questions", "retrieval", "text", "video")
    assert "vtlib.data.scenes" in own and not {f"vtlib.data.{name}" for name in asked_for} & own


def test_one_super_resolution_net_is_light():
    assert not {"vtlib.superres.ttvsr", "vtlib.data"} & loaded("vtlib.superres.catanet")


def test_a_vit_and_a_decoder_are_light():
    """No loader and no world comes with a network, no TinyVLM with its decoder."""
    assert not {"vtlib.vit.pretrained", "vtlib.checkpoints", "vtlib.data"} & loaded("vtlib.vit.vit")
    families = {name.split(".")[1] for name in loaded("vtlib.vlm.decoder")}
    assert families == {"_lazy", "nn", "tokens", "vlm"}
    assert not {"vtlib.vlm.tinyvlm", "vtlib.vlm.exam"} & loaded("vtlib.vlm.decoder")


@pytest.mark.parametrize("name, home", [
    ("nn.warp", "nn.warping"),
    ("nn.attend", "nn.attention"),
    ("vit.ViT", "vit.vit"),
    ("vit.vit_emoji", "vit.pretrained"),
    ("vlm.TinyVLM", "vlm.tinyvlm"),
    ("vlm.Decoder", "vlm.decoder"),
    ("vlm.Encoder", "vlm.encoder"),
    ("vlm.State", "vlm.decoder"),
    ("vlm.Transition", "vlm.decoder"),
    ("vlm.Cache", "vlm.decoder"),
    ("vlm.Prefill", "vlm.decoder"),
])
def test_a_family_shows_what_its_modules_hold(name, home):
    package, _, attribute = name.partition(".")
    shown = getattr(getattr(vtlib, package), attribute)
    assert shown is getattr(importlib.import_module(f"vtlib.{home}"), attribute)
