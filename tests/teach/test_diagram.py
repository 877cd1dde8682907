"""Diagrams: what is drawn fits, and is told in words."""

import html
import itertools
import re

import matplotlib
import pytest
import torch
from matplotlib.patches import Patch

from vtlib import checkpoints, teach
from vtlib.multiscale import crossformer, crossvit, tokenformer
from vtlib.superres import catanet, ttvsr, uplift
from vtlib.teach import diagrams, drawings, figures
from vtlib.teach.layout import Rect
from vtlib.vit import ViT
from vtlib.vlm import TinyVLM

BOXES = {
    "image": (0, 0, "image", "data"),
    "patches": (1, 0, "patches\n36 of them", "step"),
    "embed": (2, 0, "Linear", "layer"),
}
ARROWS = [("image", "patches", "(3, 96, 96)"), ("patches", "embed", "(36, 192)")]


@pytest.fixture
def drawn(monkeypatch):
    """[(figure, sentences), ...] of what is published."""
    found = []
    monkeypatch.setattr(diagrams, "publish", lambda fig, words: found.append((fig, words)))
    return found


def diagram(boxes=BOXES, arrows=ARROWS, groups=(), **kw):
    return diagrams.Drawing("Three steps of a ViT", boxes, arrows, groups, **kw)


# ------------------------------------------------------------------------------------------- words
def test_a_chain_of_arrows_is_one_sentence():
    assert diagram().words() == [
        "Three steps of a ViT.",
        "image (3, 96, 96) -> patches, 36 of them (36, 192) -> Linear.",
    ]


def test_words_tell_branches_skips_frames_and_the_note():
    boxes = {**BOXES, "add": (3, 0, "+", "sum"), "pos": (3, 1, "positions", "learned")}
    arrows = [*ARROWS, ("embed", "add", "tokens"), ("pos", "add", "(36, 96)")]
    arrows.append(("patches", "add", "", "above"))
    found = diagram(boxes, arrows, [(("embed", "add"), "x 4\nblocks")], note="D = 96.").words()
    assert found[1:] == [
        "image (3, 96, 96) -> patches, 36 of them (36, 192) -> Linear: tokens -> add.",
        "positions (36, 96) -> add.",
        "Skip: patches -> add.",
        "x 4 blocks: Linear, add.",
        "D = 96.",
    ]


def test_the_output_is_a_picture_with_its_words_folded_under_it(monkeypatch):
    bundles = []
    monkeypatch.setattr(figures, "publish", bundles.append)
    boxes = {**BOXES, "patches": (1, 0, "<b> & patches", "step")}
    teach.diagram("Three steps of a ViT", boxes, ARROWS)
    (bundle,) = bundles
    image = r'<img alt="([^"]*)" src="data:image/png;base64,[^"]+"[^>]*>'
    folded = r"<details><summary>[^<]+</summary><p>(.*)</p></details>"
    match = re.fullmatch(rf"{image}\n{folded}", bundle["text/html"])
    assert html.unescape(match[1]) == bundle["text/plain"]
    assert html.unescape(match[2]).replace("<br>", " ") == bundle["text/plain"]
    assert "<b>" not in match[2] and "<b> & patches (36, 192) -> Linear." in bundle["text/plain"]


# --------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("change, message", [
    (dict(boxes={}), "boxes={}"),
    (dict(boxes={"a": (0, 0, "a")}), r"boxes\['a'\]"),
    (dict(boxes={"a": (0, 0, "a", "red")}), "kind of 'a' is 'red'"),
    (dict(boxes={"a": (0, 0, " ", "data")}), "label of 'a'"),
    (dict(boxes={"a": (-1, 0, "a", "data")}), "column of 'a'=-1"),
    (dict(boxes={**BOXES, "b": (1, 0, "b", "data")}), "'patches' and 'b' both stand at column 1"),
    (dict(boxes={**BOXES, "b": (1.25, 0, "b", "data")}), "box 'patches' and box 'b' lie on"),
    (dict(arrows=[("image", "b", "")]), "no box 'b'; there are image, patches, embed"),
    (dict(arrows=[("b", "image", "")]), "no box 'b'"),
    (dict(arrows=[("image", "image", "")]), "to itself"),
    (dict(arrows=[("image", "patches")]), "needs .from, to, shape"),
    (dict(arrows=[("image", "patches", (3, 96, 96))]), "its shape needs to be a string"),
    (dict(arrows=[("image", "patches", "", "over")]), "route='over'"),
    (dict(arrows=[("image", "patches", "", "hv")]), "the way is straight"),
    (dict(arrows=[("image", "embed", "")]), "'image' -> 'embed' and box 'patches' lie on"),
    (dict(groups=[(("image", "b"), "both")]), "no box 'b'"),
    (dict(groups=[((), "none")]), "one box at least"),
    (dict(groups=[(("image",), "a title much wider than its frame")]), "lie on each other"),
    (dict(arrows=[("image", "patches", "x" * 120)]), r"1\d\d\d pixels wide and needs at most 900"),
])
def test_what_does_not_fit_is_told(change, message):
    with pytest.raises(ValueError, match=message):
        diagram(**change).figure()


def test_text_beside_an_arrow_that_meets_a_box_is_told():
    boxes = {
        "a": (0, 0, "a", "data"), "b": (0, 2, "b", "data"), "c": (1, 1, "much to say", "data"),
    }
    fits = diagram(boxes, [("a", "b", "")])
    fits.figure()
    with pytest.raises(ValueError, match="lie on each other"):
        diagram({**boxes, "c": (1, 0.5, *boxes["c"][2:])}, [("a", "b", "m" * 20)]).figure()


# ------------------------------------------------------------------- nothing lies on anything else
def extent(artist, fig):
    box = artist.get_window_extent(fig.canvas.get_renderer())
    return Rect(artist.get_gid(), box.x0, box.y0, box.x1, box.y1)


def measured(fig):
    """Texts, boxes and frames as the renderer draws them."""
    (ax,) = fig.axes
    fig.canvas.draw()
    texts = [extent(text, fig) for text in ax.texts]
    patches = [patch for patch in ax.get_children() if isinstance(patch, Patch)]
    named = [patch for patch in patches if patch.get_gid()]
    return texts, {patch.get_gid(): extent(patch, fig) for patch in named}


def within(inner, outer, by=0.0):
    return (
        inner.left >= outer.left + by and inner.right <= outer.right - by
        and inner.top >= outer.top + by and inner.bottom <= outer.bottom - by
    )


DRAWINGS = [n for n in drawings.__all__ if callable(getattr(drawings, n))]


@pytest.mark.parametrize("name", DRAWINGS)
def test_texts_of_a_paper_fit_their_boxes_and_do_not_meet(name, drawn):
    getattr(drawings, name)()
    (fig, words), = drawn
    width, height = (float(side) * 100 for side in fig.get_size_inches())
    assert width <= 900 and fig.dpi == 100
    texts, patches = measured(fig)
    page = Rect("page", 0, 0, width, height)
    for text in texts:
        assert within(text, page, 2), text
        if text.name.startswith("box "):
            assert within(text, patches[text.name], 1), text
        if text.name.startswith("frame "):
            assert within(text, patches[text.name]), text
    for one, other in itertools.combinations(texts, 2):
        assert not one.meets(other), f"{one} {other}"
    boxes = [patch for name, patch in patches.items() if name.startswith("box ")]
    loose = [text for text in texts if not text.name.startswith("box ")]
    for one, other in [*itertools.product(loose, boxes), *itertools.combinations(boxes, 2)]:
        assert not one.meets(other), f"{one} {other}"
    assert all(text.get_fontsize() >= 8.5 for text in fig.axes[0].texts)
    assert 20 <= len(" ".join(words)) <= 2400


def of_vit():
    model = ViT(64, 8, num_classes=12, embed_dim=96, num_layers=4, num_heads=3)
    images = torch.empty(1, 3, 64, 64)
    return [model.patch_embed(images), model.embed(images)[0], model(images)]


def of_crossvit():
    return crossvit.crossvit_tiny().embed(torch.empty(1, 3, 240, 240))


def of_crossformer():
    maps = crossformer.crossformer_small().stages(torch.empty(1, 3, 224, 224))
    return [x.flatten(2).transpose(1, 2) for x in maps]


def of_cel():
    embed = crossformer.CrossScaleEmbed()
    images = torch.empty(1, 3, 128, 128)
    return [*(proj(images) for proj in embed.projs), embed(images)]


def of_ttvsr():
    assert checkpoints.info("ttvsr_small")["config"]["mid_channels"] == 32
    state = torch.empty(1, 32, 96, 96)
    return [state, ttvsr.tokenize(state), ttvsr.token_flow(torch.empty(1, 2, 96, 96))]


def of_tab():
    config = checkpoints.info("catanet_small")["config"]
    block = catanet.CATANet(**config).blocks[0][0]
    assert block.group_size == 64 and config["num_layers"] == 4
    tokens = torch.empty(1, 32, 48, 48).flatten(2).transpose(1, 2)
    return [tokens, block.means[None]]


def of_uplift():
    model = uplift.UPLiFT(**checkpoints.info("uplift_emoji")["config"])
    images, features = torch.empty(1, 3, 96, 96), torch.empty(1, 128, 12, 12)
    return [features, *model(images, features, return_steps=True)]


def of_uplift_step():
    model = uplift.UPLiFT(**checkpoints.info("uplift_emoji")["config"])
    features, maps = torch.empty(1, 128, 12, 12), model.encode(torch.empty(1, 3, 96, 96))
    out, attn = model.upsample(features, maps, return_attn=True)
    return [features, model.decoder(features, maps), out, attn]


def of_pruning():
    vision = TinyVLM(["crab"]).encode(torch.empty(1, 3, 128, 128))
    return [vision.features]


MODELS = {
    "vit": of_vit, "crossvit": of_crossvit, "crossformer": of_crossformer, "ttvsr_step": of_ttvsr,
    "crossformer_cel": of_cel, "catanet_tab": of_tab, "uplift": of_uplift,
    "uplift_step": of_uplift_step, "pruning": of_pruning,
}


@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_those_of_the_models(name, drawn):
    getattr(drawings, name)()
    with torch.device("meta"), torch.no_grad():
        shapes = [tuple(x.shape[1:]) for x in MODELS[name]()]
    words = " ".join(drawn[0][1])
    for shape in shapes:
        written = str(shape).replace(",)", ")")
        assert written in words, f"{written} is not in: {words}"


def test_numbers_of_pairs_are_those_of_the_shipped_tokenformer(drawn):
    config = checkpoints.info("tokenformer_chars")["config"]
    with torch.device("meta"):
        block = tokenformer.TokenFormer(**config).blocks[0]
    drawings.tokenformer()
    words = " ".join(drawn[0][1])
    assert f"Pattention Q, {block.attention.query.num_tokens} pairs" in words
    assert f"Pattention FFN, {block.mlp.num_tokens} pairs" in words
    assert f"(T, {config['embed_dim']})" in words


@pytest.mark.parametrize("name", ["vit", "catanet_groups"])
def test_defaults_of_matplotlib_change_nothing(name, drawn):
    getattr(drawings, name)()
    changed = {"font.family": ["monospace"], "text.color": "red", "figure.facecolor": "black"}
    with matplotlib.rc_context(changed):
        diagrams.size.cache_clear()
        getattr(drawings, name)()
    one, other = (figures.png(fig, 100) for fig, _ in drawn)
    assert one == other


def test_the_measure_above_finds_what_does_not_fit():
    fig = diagram().figure()
    texts, patches = measured(fig)
    assert all(within(t, patches[t.name], 2) for t in texts if t.name.startswith("box "))
    (label,) = [text for text in fig.axes[0].texts if text.get_text() == "36 of them"]
    label.set_text("more than fits into this box")
    texts, patches = measured(fig)
    assert not all(within(t, patches[t.name]) for t in texts if t.name.startswith("box "))


def test_kinds_differ_without_colour():
    """In shape, line or width of the border: whoever sees no colours still tells them apart."""
    looks = [(kind.shape, kind.line, kind.width) for kind in diagrams.KINDS.values()]
    assert len(set(looks)) == len(looks)
