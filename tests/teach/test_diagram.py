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
from vtlib.pruning import aim, hiprune, holov, visiondrop
from vtlib.pruning.registry import METHODS
from vtlib.segmentation import CASWiT, vwformer
from vtlib.superres import catanet, ttvsr, uplift
from vtlib.teach import diagrams, drawings, figures
from vtlib.teach.drawings import sketches
from vtlib.teach.layout import Rect
from vtlib.tokenizers import TokenFlow
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
    state, flow = torch.empty(1, 32, 96, 96), torch.empty(1, 2, 96, 96)
    return [state, ttvsr.tokenize(state), flow, ttvsr.token_flow(flow)]


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
    return [of_tinyvlm().features]


def of_tinyvlm():
    return TinyVLM(["crab"]).encode(torch.empty(1, 3, 128, 128), need=("cls_row",))


def of_fastervlm():
    vision = of_tinyvlm()
    return [vision.features, vision.cls_row, vision.tokens[:, :28]]


def of_projected():
    return [of_tinyvlm().tokens]


def of_zooprune():
    vision = of_tinyvlm()
    return [vision.features, vision.tokens]


def of_vq_autoencoder():
    return [torch.empty(1, 2, 8, 8), torch.empty(1, 8, 8)]


def of_tokenflow():
    model = TokenFlow()
    assert model.grid == (14, 14) and model.semantic_dim == 32
    codes = torch.empty(1, 196, model.quantizer.dim)
    return [codes, *codes.split((32, 8), dim=-1)]


def of_vwformer():
    x = torch.empty(1, 64, 16, 16)
    small = vwformer.VWHead((8, 64, 8, 8), 3, 64, 1, ratios=(4,)).eval().embed(x, 0)
    context = vwformer.context_windows(small, 4)
    padded = vwformer.copy_shift_padding(small, 4)
    return [x, padded, context, vwformer.fold(context, 4)]


def of_caswit():
    net = CASWiT(**checkpoints.info("caswit_emoji")["config"]).eval()
    around, found = net.embed(torch.empty(1, 3, 64, 64), net.lr, "context"), []
    for layer in net.lr.layers[:2]:
        around = layer(around)
        found.append(around.permute(0, 3, 1, 2))
        around = layer.downsample(around)
    return found


MODELS = {
    "vwformer": of_vwformer, "caswit": of_caswit,
    "vit": of_vit, "crossvit": of_crossvit, "crossformer": of_crossformer, "ttvsr_step": of_ttvsr,
    "crossformer_cel": of_cel, "catanet_tab": of_tab, "uplift": of_uplift,
    "uplift_step": of_uplift_step, "pruning": of_pruning, "fastervlm": of_fastervlm,
    "divprune": of_projected, "holov": of_projected, "aim": of_projected, "fastv": of_projected,
    "transprune": of_projected, "zooprune": of_zooprune, "vq_autoencoder": of_vq_autoencoder,
    "tokenflow": of_tokenflow,
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


# --------------------------------------------------------------------------------------- pruners
@pytest.fixture
def told(monkeypatch):
    """The words of a drawing, without drawing it."""
    found = []
    monkeypatch.setattr(diagrams.Drawing, "figure", lambda self: None)
    monkeypatch.setattr(diagrams, "publish", lambda fig, words: found.append(" ".join(words)))

    def words(name):
        getattr(drawings, name)()
        return found.pop()

    return words


def test_the_three_places_have_the_methods_of_the_registry(told):
    places = {"features": set(), "tokens": set(), "inside": set()}
    for method in METHODS.values():
        if (method.paper is None and method.name != "fastv") or method.name == "aim_merge":
            continue
        title = method.title.removesuffix(" Compression").partition(" (")[0]
        if method.prune is not None:
            places["tokens" if method.space == "tokens" else "features"].add(title)
        if method.stages is not None:
            places["inside"].add(title)
    words = told("pruning")
    for number, (place, methods) in enumerate(places.items(), 1):
        (listed,) = re.findall(rf"{number}: [a-z ]+, ([^\[]*) \[", words)
        assert set(listed.split(", ")) == methods, place


@pytest.mark.parametrize("name", ["fastv", "fastervlm", "divprune", "holov", "zooprune"])
def test_a_sketch_keeps_the_share_that_its_drawing_tells(name, told):
    words = told(name)
    assert "picture: 7 kept, 57 dropped" in words and "7 stay: the same share as 28 of 256" in words


def test_numbers_of_the_pruners_are_those_of_their_code(told):
    def cuts(name, num_visual, keep=28):
        return {s.after: s.keep for s in METHODS[name].stages(6, keep, num_visual)}

    words = told("visiondrop")
    first = sum(visiondrop.schedule(28)[0])
    assert f"({first}, 128)" in words
    for stage, (after, left) in enumerate(cuts("visiondrop", first).items(), 1):
        assert f"stage {stage}, after layer {after}: " in words
        assert f"({left}, 128)" in words or f"read {left} tokens" in words
    words = told("transprune")
    assert f"after layers {', '.join(map(str, cuts('transprune', 256)))};" in words
    assert "row 2: 223, row 3: 158, row 4: 28" in words
    left = list(itertools.accumulate([256, *aim.merge_counts(28, 256)], lambda n, r: n - r))
    assert "{}, then {}, {}, {}".format(*left[1:]) in told("aim")
    assert cuts("fastv", 256) == {2: 28} and "layers 1, 2: all tokens" in told("fastv")
    assert hiprune.num_anchors(28, 0.1) == 1 and "1 anchor, 4 buffers and 23" in told("hiprune")
    assert holov.default_crops(256, 28) == 16 and "16 crops of 16" in told("holov")
    words = told("crossget")
    assert "(198, 768)" in words and "(182, 768)" in words and "12 layers leave 12 of 198" in words


def test_what_hiprune_and_recoverable_add_up_to(told):
    """The picture of the whole has the tokens of its parts."""
    words = told("hiprune")
    for part in ("1 A, 4 B]", "2 R]", "1 A, 4 B, 2 R]"):
        assert part in words, part
    words = told("recoverable")
    for part in ("4 V]", "2 T]", "3 merged, 2 T, 4 V]"):
        assert part in words, part


# -------------------------------------------------------------------------------------- sketches
def test_a_picture_is_told_and_gets_room():
    cells = sketches.Cells(["129", "-", "#.+", "Ato"], notes={2: "a note"})
    assert cells.words == (
        "picture: 3 scores, the highest in row 1, column 3, 1 undecided, 1 kept, 1 dropped, "
        "1 merged, 1 words, 1 A, row 3: a note"
    )
    assert cells.size[1] == 3 * 11 + 5
    drawing = diagram({**BOXES, "embed": (2, 0, "Linear", "layer", cells)})
    assert drawing.words()[1].endswith(f"Linear [{cells.words}].")
    drawing.figure()
    assert drawing.boxes["embed"].height > cells.size[1] > diagram().boxes["embed"].height
    with pytest.raises(ValueError, match="picture of 'a' is 'no'"):
        diagram({"a": (0, 0, "a", "data", "no")}, [])


def test_a_score_is_darker_the_higher_it_is():
    tones = [sum(sketches.shade(score / 9)) for score in range(10)]
    assert tones == sorted(tones, reverse=True) and tones[0] - tones[-1] > 1


def test_a_drawing_can_do_without_a_legend():
    def legend(**kw):
        return [t for t in diagram(**kw).figure().axes[0].texts if t.get_gid() == "legend"]

    assert len(legend()) == 3 and not legend(legend=False)


def test_a_legend_may_have_words_of_its_own():
    def legend(**kw):
        texts = diagram(**kw).figure().axes[0].texts
        return [t.get_text() for t in texts if t.get_gid() == "legend"]

    ours = legend(meanings={"data": "a table"})
    assert len(ours) == 3 and "a table" in ours and "what flows" not in ours
    assert "what flows" in legend()                 # for the next drawing nothing changed
    with pytest.raises(ValueError, match="'nothing' is no kind"):
        diagram(meanings={"nothing": "?"})


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
