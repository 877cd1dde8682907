"""The rivals against brute-force readings of their rules, on TinyVLM and on transformers' models.
What official functions chose of the same inputs: tests/golden/others."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from tests.golden.adapters_others import Recorded
from tests.pruning.examples import BATCH, DIM, N, seeded, vision_of
from tests.vlm.tiny import make_tinyvlm
from vtlib.pruning import bench, others
from vtlib.pruning.method import Method
from vtlib.pruning.registry import METHODS
from vtlib.tokens import top_tokens
from vtlib.vlm.decoder import Decoder

RIVALS = [name for name, method in METHODS.items() if method.kind == "rival"]
BEFORE = [name for name in RIVALS if METHODS[name].prune is not None]
QUESTIONS = ["is there a crab?", "how many times does the key appear?"]
KEEP = 11


@pytest.fixture(scope="module")
def vision():
    return vision_of(seeded(BATCH, N, DIM))


@pytest.fixture(scope="module")
def model():
    return make_tinyvlm()


def test_they_are_rivals():
    assert RIVALS == ["visionzip", "prumerge", "vispruner", "cdpruner", "pyramiddrop", "sparsevlm",
                      "dart"]
    for name in RIVALS:
        method = METHODS[name]
        assert method.paper is None and method.arxiv in (method.prune or method.stages).__doc__
    assert METHODS["divprune"].kind == "paper" and METHODS["random"].kind == "baseline"
    assert METHODS["fastv"].kind == "baseline"
    assert Method("mine", "Mine", prune=others.visionzip).kind == "baseline"


# --------------------------------------------------------------------------------- brute force
def cosine(x, y):
    return F.cosine_similarity(x.double(), y.double(), dim=-1)


@pytest.mark.parametrize("keep", [1, 2, KEEP, 30])
def test_visionzip(vision, keep):
    few = round(5 * keep / 32)
    plan = others.visionzip(vision, keep)
    for b in range(BATCH):
        a, x, keys = vision.cls_row[b].mean(0), vision.features[b], vision.keys[b, 1:]
        dominant = sorted(a.argsort(descending=True)[: keep - few].tolist())
        rest = [n for n in range(N) if n not in dominant]
        targets = rest[:: max(1, len(rest) // few)][:few] if few else []
        groups = {t: [] for t in targets}
        for n in rest:
            if n not in targets and few:
                likeness = [cosine(keys[n], keys[t]) for t in targets]
                groups[targets[likeness.index(max(likeness))]].append(x[n])
        out = [x[n] for n in dominant]
        out += [x[t] + (sum(g) / len(g) if g else 0) for t, g in groups.items()]
        assert plan.index[b].tolist() == dominant + targets
        torch.testing.assert_close(plan.apply(vision.features)[b], torch.stack(out))


def test_budgets_of_visionzip_are_the_papers():
    for keep, few in ((64, 10), (128, 20), (192, 30)):
        plan = others.visionzip(vision_of_many(256), keep)
        assert (plan.role == 1).sum() == few and len(plan) == keep


def vision_of_many(count):
    from vtlib.tokens import VisionOutputs

    row = seeded(1, 2, count, seed=1).softmax(dim=-1)
    return VisionOutputs(seeded(1, count, 4), (1, count), torch.nn.Identity(), 0, row,
                         seeded(1, count, 3, seed=2))


@pytest.mark.parametrize("keep", [1, 2, KEEP, 35])
def test_prumerge(vision, keep):
    plan = others.prumerge(vision, keep)
    for b in range(BATCH):
        a, x, keys = vision.cls_row[b].mean(0), vision.features[b], vision.keys[b, 1:]
        top = sorted(a.argsort(descending=True)[: max(1, keep - 1)].tolist())
        rest = [n for n in range(N) if n not in top]
        out = []
        for i in top:
            likeness = {j: float(cosine(keys[i], keys[j])) for j in range(N) if j != i}
            near = sorted(likeness, key=likeness.get, reverse=True)[:32]
            out.append(x[i] + sum(a[j] * x[j] for j in near))
        out.append(sum(a[n] * x[n] for n in rest))
        torch.testing.assert_close(plan.apply(vision.features)[b], torch.stack(out[:keep]))
        if keep > 1:
            assert plan.index[b].tolist() == [*top, max(rest, key=lambda n: a[n])]


@pytest.mark.parametrize("keep", [1, 2, 3, KEEP, 16, 35])
def test_vispruner(vision, keep):
    """An odd number of others, too: the release would fail there."""
    plan = others.vispruner(vision, keep)
    for b in range(BATCH):
        a, x = vision.cls_row[b].mean(0), vision.features[b]
        order = a.argsort(descending=True).tolist()
        important, rest = order[: keep // 2], order[keep // 2 :]
        while len(rest) > keep - keep // 2:
            gone = min(8, len(rest) - (keep - keep // 2))
            odd, even = rest[::2], rest[1::2]
            nearest = {n: max(float(cosine(x[n], x[m])) for m in even) for n in odd}
            odd = sorted(odd, key=nearest.get, reverse=True)[gone:]
            rest = odd + even
        assert plan.index[b].tolist() == sorted(important + rest)


def test_cdpruner_is_greedy_in_the_determinant():
    """Each token is that which makes the determinant of the kernel of the chosen largest."""
    vision, patches = vision_of(seeded(BATCH, N, 16)), seeded(BATCH, N, 6, seed=4)
    text = seeded(BATCH, 6, seed=5)
    plan = others.cdpruner(vision, KEEP, patches=patches, text=text)
    for b in range(BATCH):
        r = cosine(patches[b], text[b])
        r = (r - r.min() + 1e-6) / (r.max() - r.min())
        x = F.normalize(vision.tokens[b].double(), dim=-1)
        kernel, chosen = r[:, None] * (x @ x.T) * r, []
        for _ in range(KEEP):
            volume = {n: float(torch.linalg.det(kernel[chosen + [n]][:, chosen + [n]]))
                      for n in range(N) if n not in chosen}
            chosen.append(max(volume, key=volume.get))
        assert plan.index[b].tolist() == sorted(chosen)


def test_cdpruner_on_copies():
    """Three kinds of tokens: one of each, then what is most relevant; nothing is taken twice."""
    tokens = seeded(1, 3, DIM).repeat_interleave(12, dim=1)
    vision = vision_of(tokens)
    vision.grid = (6, 6)
    patches, text = seeded(1, N, 6, seed=4), seeded(1, 6, seed=5)
    index = others.cdpruner(vision, 7, patches=patches, text=text).index[0]
    assert sorted({int(n) // 12 for n in index}) == [0, 1, 2]
    best = cosine(patches[0], text[0]).argsort(descending=True)
    assert set(best[:5].tolist()) <= set(index.tolist())


def test_cdpruner_listens(model):
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        vision = bench.encode(model, images, ["cdpruner"])
        one, other = (bench.reduce(model, vision, "cdpruner", 10, q).plan.index
                      for q in (QUESTIONS, QUESTIONS[::-1]))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("part, message", [
    (dict(patches=seeded(BATCH, N - 1, 6)), r"patches is .* need \(B, N, D\) and \(B, D\)"),
    (dict(text=seeded(BATCH, 5)), r"text .* need \(B, N, D\) and \(B, D\)"),
])
def test_signals_that_do_not_fit(vision, part, message):
    given = {"patches": seeded(BATCH, N, 6), "text": seeded(BATCH, 6), **part}
    with pytest.raises(ValueError, match=message):
        others.cdpruner(vision, KEEP, **given)


@pytest.mark.parametrize("name, part", [
    ("visionzip", "keys"), ("visionzip", "cls_row"), ("prumerge", "keys"), ("vispruner", "cls_row"),
])
def test_parts_that_are_missing_or_of_others(name, part):
    vision = vision_of(seeded(BATCH, N, DIM))
    setattr(vision, part, getattr(vision, part)[..., :-1, :] if part == "keys" else
            vision.cls_row[..., :-1])
    with pytest.raises(ValueError, match=rf"vision.{part} is"):
        METHODS[name].prune(vision, KEEP)
    setattr(vision, part, None)
    with pytest.raises(ValueError, match=rf"vision.{part} is None"):
        METHODS[name].prune(vision, KEEP)


# ----------------------------------------------------------------------------- inside the decoder
def test_cuts():
    assert others.cuts(32, 72, 576, (1 / 4, 1 / 2, 3 / 4)) == [(8, 288), (16, 144), (24, 72)]
    assert others.cuts(28, 64, 256, (1 / 4, 1 / 2, 3 / 4))[-1] == (21, 64)
    assert others.cuts(2, 3, 9, (1 / 4, 1 / 2, 3 / 4)) == [(1, 3)]
    assert [after for after, _ in others.cuts(32, 9, 99, (3 / 32, 7 / 32, 1 / 2))] == [3, 7, 16]
    for keep, count in itertools.product((1, 2, 7), (7, 50)):
        left = [n for _, n in others.cuts(32, keep, count, (1 / 4, 1 / 2, 3 / 4))]
        assert left == sorted(left, reverse=True) and left[-1] == keep and left[0] <= count
    with pytest.raises(ValueError, match="num_layers"):
        others.pyramiddrop(1, 3, 9)
    with pytest.raises(ValueError, match="after"):
        others.dart(4, 3, 9, after=4)


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return Decoder(embed_dim=16, num_layers=8, num_heads=2, hidden_dim=24).eval()


TEXT, PADDED = 5, 3
VISUAL = slice(1, 1 + N)


def prefill(decoder, stages, valid=None):
    x = 2 * seeded(BATCH, 1 + N + TEXT, 16)
    with torch.no_grad():
        return x, decoder.prefill(x, VISUAL, stages, valid, positions="keep")


def padded():
    """The second prompt has three words less."""
    valid = torch.ones(BATCH, 1 + N + TEXT, dtype=torch.bool)
    valid[1, -PADDED:] = False
    return valid


def test_pyramiddrop_asks_the_last_word(decoder):
    stages = others.pyramiddrop(8, 4, N)
    assert [(s.after, s.keep) for s in stages] == [(2, 17), (4, 8), (6, 4)]
    _, run = prefill(decoder, stages, padded())
    for stage, state, plan in zip(stages, run.states, run.plans, strict=True):
        for b, last in enumerate((-1, -1 - PADDED)):
            with torch.no_grad():
                row = state.attention(slice(None), "next")[b, :, last, state.visual].mean(0)
            assert torch.equal(plan.index[b], top_tokens(row[None], stage.keep)[0])


def test_sparsevlm_asks_its_raters(decoder):
    stages = others.sparsevlm(8, 4, N)
    assert [(s.after, s.keep) for s in stages] == [(0, N), (1, 17), (2, 8), (4, 4)]
    x, run = prefill(decoder, stages, padded())
    assert len(run.plans[0]) == N
    for b, count in enumerate((TEXT, TEXT - PADDED)):
        words = x[b, 1 + N : 1 + N + count].double()
        m = (x[b, VISUAL].double() @ words.T).softmax(dim=1).mean(dim=0)
        raters = [w for w in range(count) if m[w] > m.mean()]
        assert 0 < len(raters) < count
        for stage, state, plan in zip(stages[1:], run.states[1:], run.plans[1:], strict=True):
            rows = [state.visual.stop + w for w in raters]
            with torch.no_grad():
                weights = state.attention(slice(None), "last")[b][:, rows, state.visual]
            want = top_tokens(weights.mean(dim=(0, 1))[None], stage.keep)[0]
            assert torch.equal(plan.index[b], want)


def test_a_single_word_rates():
    x = seeded(1, 6, 4)
    state = Recorded(6, slice(1, 5), hidden=x).state()
    assert others.raters(state).tolist() == [[False] * 5 + [True]]
    with pytest.raises(ValueError, match="the prompt has none there"):
        others.asking(Recorded(5, slice(1, 5), hidden=x[:, :5]).state())


@pytest.mark.parametrize("keep", [1, 3, 4, KEEP, 20, N - 1])
def test_dart(decoder, keep):
    """Word by word and pivot by pivot; the second prompt has two words, and its first fills up."""
    (stage,) = others.dart(8, keep, N)
    _, run = prefill(decoder, [stage], padded())
    (state,), (plan,) = run.states, run.plans
    with torch.no_grad():
        keys = state.qk("last")[1]
    for b, count in enumerate((TEXT, TEXT - PADDED)):
        norm = keys[b].transpose(0, 1).flatten(1).norm(p=1, dim=1)
        by_norm = norm.argsort(descending=True).tolist()
        kept = [n for n in by_norm if 1 <= n < 1 + N][: min(4, keep)]
        words = [w for w in by_norm if 1 + N <= w < 1 + N + count][: min(4, keep)]
        words += [words[0]] * (min(4, keep) - len(words))
        pivots, rest = [*sorted(kept), *sorted(words)], keep - min(4, keep)
        for turn, pivot in enumerate(pivots):
            number = (turn + 1) * rest // len(pivots) - turn * rest // len(pivots)
            left = [n for n in range(1, 1 + N) if n not in kept]
            like = {n: float(cosine(state.hidden[b, pivot], state.hidden[b, n])) for n in left}
            kept = kept + sorted(left, key=like.get)[:number]
        assert len(kept) == keep and (plan.index[b] + 1).tolist() == sorted(kept)


# ------------------------------------------------------------------------------ on whole models
@pytest.mark.parametrize("name", RIVALS)
def test_on_tinyvlm(model, name):
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        done = bench.reduce(model, images, name, 10, QUESTIONS)
        said = model.answer(done.tokens, QUESTIONS, done.stages, done.positions)
    assert len(done.whole(said.prefill)) == 10 and said.probability.isfinite().all()
    only = METHODS[name].stages
    assert (done.tokens.shape[1] == 10) == (only is None)


@pytest.mark.parametrize("name", BEFORE)
def test_other_dtypes_and_gradients(name):
    vision = vision_of(seeded(BATCH, N, DIM).half())
    signals = {"patches": vision.features, "text": seeded(BATCH, DIM, seed=5).half()}
    given = {key: signals[key] for key in METHODS[name].signals}
    plan = METHODS[name].plan(vision, KEEP, **given)
    assert plan.apply(vision.features).dtype == torch.float16 and len(plan) == KEEP
    double = vision_of(seeded(BATCH, N, DIM).double())              # its [CLS] row in float32
    double.cls_row = double.cls_row.float()
    signals = {"patches": double.features, "text": seeded(BATCH, DIM, seed=5).double()}
    given = {key: signals[key] for key in METHODS[name].signals}
    assert METHODS[name].plan(double, KEEP, **given).apply(double.features).dtype == torch.float64
    features = seeded(BATCH, N, DIM).requires_grad_()
    vision = vision_of(features)
    given = {"patches": vision.features, "text": seeded(BATCH, DIM, seed=5)}
    given = {key: given[key] for key in METHODS[name].signals}
    METHODS[name].plan(vision, KEEP, **given).apply(vision.features).square().sum().backward()
    assert features.grad.isfinite().all() and features.grad.abs().sum() > 0
