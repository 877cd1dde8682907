"""CrossGET: matching and merge are a double loop's, protected tokens stay, the dual encoder bears
what models must."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.pruning import crossget_encoder
from vtlib.pruning.crossget import (
    METHODS,
    Pairs,
    ensemble,
    importance_attention,
    importance_cosine,
    match,
    merges,
    prune,
    rate,
    schedule,
)
from vtlib.pruning.crossget_encoder import CrossGETCLIP, cross_loss
from vtlib.tokens import VisionOutputs, redundancy


def tokens(batch=2, t=20, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    size = torch.randint(1, 5, (batch, t), generator=g).float()
    return torch.randn(batch, t, dim, generator=g), torch.rand(batch, t, generator=g), size


def brute_match(key, importance, r, protected, method="complete"):
    """One image, loops over tokens: sources in order of score, targets, and each pair's two
    weights."""
    t = len(key)
    def cosine(i, j):
        if i == j or {i, j} & protected:
            return -math.inf
        return float(F.cosine_similarity(key[i].double(), key[j].double(), dim=0))
    cos = [[cosine(min(i, j), max(i, j)) for j in range(t)] for i in range(t)]
    if method == "complete":
        order = sorted(range(t), key=lambda i: (-max(cos[i]), i))
        rank = {token: place for place, token in enumerate(order)}
        red = []
        for i in range(t):
            behind = [cos[i][j] for j in range(t) if rank[j] > rank[i]]
            red.append(max(behind, default=-math.inf))
    else:
        free = [i for i in range(t) if i not in protected]
        red = [max(cos[i][j] for j in free[1::2]) if i in free[::2] else -math.inf
               for i in range(t)]
    score = [float(importance[i]) - red[i] for i in range(t)]
    sources = sorted(range(t), key=lambda i: (score[i], i))[: min(r, (t - len(protected)) // 2)]
    receivers = [j for j in range(t) if j not in sources] if method == "complete" else free[1::2]
    targets = [max(receivers, key=lambda j: (cos[i][j], -j)) for i in sources]
    weights = [torch.tensor([importance[i], importance[j]]).softmax(0)
               for i, j in zip(sources, targets, strict=True)]
    return sources, targets, weights


def brute_merge(x, size, sources, targets, weights):
    out, total = x * size[:, None], size.clone()
    start = out.clone()
    for i, j, w in zip(sources, targets, weights, strict=True):
        out[j] += 2 * w[0] * start[i] + (2 * w[1] - 1) * start[j]
        total[j] += size[i]
    kept = [i for i in range(len(x)) if i not in sources]
    return (out / total[:, None])[kept], total[kept]


# ---------------------------------------------------------------- matching
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("t, r, eot", [
    (20, 5, None), (21, 50, None), (17, 4, (3, 9)), (16, 50, (1, 14)), (4, 1, None),
    (5, 9, (1, 3))])
def test_equal_to_a_double_loop(t, r, eot, method):
    for seed in range(4):
        key, importance, size = tokens(2, t, seed=seed)
        where = None if eot is None else torch.tensor(eot)
        pairs = match(key, importance, r, eot=where, method=method)
        plan, new = ensemble(pairs, size)
        x = torch.randn(2, t, 6, generator=torch.Generator().manual_seed(seed))
        out = plan.apply(x)
        assert out.shape[1] == new.shape[1] == t - merges(r, t, 2 + (eot is not None))
        for b in range(2):
            protected = {0, t - 1} | (set() if eot is None else {eot[b]})
            sources, targets, weights = brute_match(key[b], importance[b], r, protected, method)
            assert pairs.source[b].tolist() == sources and pairs.target[b].tolist() == targets
            want, sizes = brute_merge(x[b], size[b], sources, targets, weights)
            torch.testing.assert_close(out[b], want, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(new[b], sizes)


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 30), st.integers(0, 20), st.booleans(), st.integers(0, 10**6))
def test_invariants(t, r, ties, seed):
    key, importance, size = tokens(2, t, 4, seed)
    if ties:
        key, importance = key.sign(), importance.round()      # many equal keys and importances
    pairs = match(key, importance, r)
    plan, new = ensemble(pairs, size)
    x = torch.randn(2, t, 5)
    out = plan.apply(x)
    assert len(plan) == t - merges(r, t, 2) and out.isfinite().all()
    assert torch.equal(new.sum(1), size.sum(1))                             # nobody is lost
    assert (plan.index.diff(dim=1) > 0).all()                               # the old order
    for b in range(2):
        sources, targets = set(pairs.source[b].tolist()), set(pairs.target[b].tolist())
        assert not sources & targets and not {0, t - 1} & (sources | targets)
        assert sorted(sources | set(plan.index[b].tolist())) == list(range(t))
        alone = [s for s, i in enumerate(plan.index[b].tolist()) if i not in targets]
        assert torch.equal(out[b, alone], x[b, plan.index[b, alone]])       # bit for bit
    assert (plan.source() >= 0).all()


def test_equal_importance_is_the_size_weighted_mean_and_conserves_the_sum():
    key, importance, size = tokens(3, 24)
    x = torch.randn(3, 24, 7)
    equal = match(key, torch.full_like(importance, 0.3), 8)
    plan, new = ensemble(equal, size)
    whole = (x * size[..., None]).sum(1)
    torch.testing.assert_close((plan.apply(x) * new[..., None]).sum(1), whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plan.matrix().sum(-1), torch.ones(3, 16))
    uneven, new = ensemble(match(key, importance * 4, 8), size)
    assert ((uneven.apply(x) * new[..., None]).sum(1) - whole).abs().max() > 0.1
    plain = ensemble(match(key, importance * 4, 8), size, guided=False)[0]
    torch.testing.assert_close(plain.matrix().sum(-1), torch.ones(3, 16))


def test_two_sources_of_one_target_are_not_renormalised():
    weight = torch.tensor([[[0.3, 0.7], [0.1, 0.9]]])
    pairs = Pairs(torch.tensor([[1, 2]]), torch.tensor([[3, 3]]), weight)
    plan, size = ensemble(pairs, torch.tensor([[1.0, 2.0, 3.0, 4.0, 1.0]]))
    assert size.tolist() == [[1, 9, 1]]
    want = torch.tensor([0, 2 * 0.3 * 2, 2 * 0.1 * 3, (1 + 0.4 + 0.8) * 4, 0]) / 9
    torch.testing.assert_close(plan.matrix()[0, 1], want)
    assert plan.source().tolist() == [[0, 1, 1, 1, 2]]


def test_mutual_neighbours_never_swap():
    """Without the rank mask both halves of a pair would be chosen."""
    first, second = ([1.0, 0.0], [1.0, 0.01]), ([0.0, 1.0], [0.05, 1.0])
    key = torch.tensor([[[9.0, 9.0], *first, *second, [-1.0, -1.0], [9.0, 9.0]]])
    pairs = match(key, torch.zeros(1, 7), 2)
    assert pairs.source.tolist() == [[1, 3]] and pairs.target.tolist() == [[2, 4]]
    similarity = F.normalize(key, dim=-1) @ F.normalize(key, dim=-1).mT
    similarity[:, range(7), range(7)] = -2
    # the top two are one pair
    assert set(similarity[0, 1:6, 1:6].amax(-1).topk(2).indices.tolist()) == {0, 1}


def test_importance_protects_and_weighs():
    key, _, size = tokens(1, 30)
    plain = match(key, torch.zeros(1, 30), 10)
    wanted = plain.source[0, :3]
    importance = torch.zeros(1, 30).index_fill(1, wanted, 2.5)
    guided = match(key, importance, 10)
    assert not torch.isin(guided.source, wanted).any()
    targets = torch.isin(guided.target, wanted)
    assert (guided.weight[targets][:, 1] > 0.9).all() and (guided.weight[~targets] == 0.5).all()


def test_permuting_the_tokens_permutes_the_result():
    """Mutual neighbours tie, and ties go to the lower index: permutations that keep each pair's
    order change nothing."""
    for seed in range(5):
        key, importance, size = tokens(1, 25, seed=seed)
        x = torch.randn(1, 25, 6)
        unit = F.normalize(key[0], dim=-1)
        similarity = unit @ unit.T
        similarity[range(25), range(25)] = -2
        similarity[:, [0, 24]] = similarity[[0, 24]] = -2
        best = similarity.argmax(-1).tolist()
        inner = 1 + torch.randperm(23, generator=torch.Generator().manual_seed(seed))
        order = torch.cat([torch.tensor([0]), inner, torch.tensor([24])])
        place = order.argsort().tolist()
        for i in range(1, 24):
            j = best[i]
            if best[j] == i and i < j and place[i] > place[j]:
                place[i], place[j] = place[j], place[i]
        order = torch.tensor(place).argsort()
        first, second = match(key, importance, 8), match(key[:, order], importance[:, order], 8)
        assert torch.equal(order[second.source], first.source)
        assert torch.equal(order[second.target], first.target)
        one, two = (ensemble(p, s)[0] for p, s in ((first, size), (second, size[:, order])))
        back = order[two.index[0]].argsort()
        moved = two.apply(x[:, order])[:, back]
        torch.testing.assert_close(one.apply(x), moved, atol=1e-5, rtol=1e-5)


def test_ties_are_exact_and_go_to_the_lower_index():
    key = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(3))
    twin = torch.cat([key, key], dim=1)                       # everybody has a twin 64 places later
    pairs = match(twin, torch.zeros(1, 128), 64, 0, 0)
    assert torch.equal(pairs.source.sort(1).values[0], torch.arange(64))
    assert torch.equal(pairs.target, pairs.source + 64)


def test_complete_graph_beats_the_bipartite_one():
    """Claim 1: 196 tokens in 120 noisy clusters, 49 merges; and duplicates that all sit at one
    parity."""
    quality = {}
    for method in METHODS:
        quality[method] = []
        for seed in range(10):
            g = torch.Generator().manual_seed(seed)
            centre = F.normalize(torch.randn(120, 24, generator=g), dim=-1)
            cluster = torch.randint(120, (1, 196), generator=g)
            key = centre[cluster] + 0.1 * torch.randn(1, 196, 24, generator=g)
            worst = torch.randn(1, 196, 24, generator=g)
            worst[:, 98::2] = worst[:, 0:98:2] + 0.1 * torch.randn(1, 49, 24, generator=g)
            row = []
            for keys in (F.normalize(key, dim=-1), F.normalize(worst, dim=-1)):
                pairs = match(keys, torch.zeros(1, 196), 49, 0, 0, method=method)
                cosine = (keys[0, pairs.source[0]] * keys[0, pairs.target[0]]).sum(-1)
                row.append(cosine.mean().item())
            quality[method].append(row)
    complete, bipartite = (torch.tensor(quality[method]) for method in METHODS)
    assert (complete > bipartite).all()
    gain = (complete - bipartite).mean(0)
    assert gain[0] > 0.01 and gain[1] > 0.3 and complete.mean(0)[1] > 0.9


def test_importances():
    key, _, _ = tokens(2, 9)
    query = torch.randn(2, 8)
    want = F.cosine_similarity(key, query[:, None], dim=-1)
    torch.testing.assert_close(importance_cosine(key, query), want)
    attn = torch.rand(2, 9, 9)
    want = [[sum(float(attn[b, q, i]) for q in range(8)) / 8 + float(attn[b, 8, i])
             for i in range(9)] for b in range(2)]
    torch.testing.assert_close(importance_attention(attn), torch.tensor(want))


# ---------------------------------------------------------------- counts
def test_counts_of_the_official_models():
    vit = schedule(16, 198, 12)               # CLIP ViT-B/16: [CLS], 196 patches, cross token
    # the last layer may take half of 20 only
    assert vit[:12] == [198 - 16 * i for i in range(12)] and vit[12] == 12
    assert schedule(13, 578, 24)[23] == 279   # LLaVA's CLIP-L: the layer before the last
    assert schedule(0, 50, 3) == [50] * 4 and merges(5, 3, 2) == 0 and merges(5, 2, 3) == 0
    assert rate(279, 578, 23) == 13 and rate(198, 198, 12) == 0
    for keep in (20, 33, 66):
        r = rate(keep, 66, 4)
        assert schedule(r, 66, 4)[-1] <= keep and (r == 0 or schedule(r - 1, 66, 4)[-1] > keep)
    with pytest.raises(ValueError, match="keep=2 but 4 layers"):
        rate(2, 66, 4)


def test_extra_parameters():
    model = CrossGETCLIP(32, 16, 48, 3, 20, 8, 24, 2, 3, 16)
    assert model.visual.transformer.cross_image.shape == (1, 3, 48)
    assert model.transformer.cross_text.shape == (1, 3, 24)
    with torch.device("meta"):
        official = CrossGETCLIP()
    assert official.visual.transformer.cross_image.numel() == 12 * 768
    # OpenAI's ViT-B/16, crosses
    assert sum(p.numel() for p in official.parameters()) == 149_620_737 + 12 * 768 + 12 * 512


# ---------------------------------------------------------------- training-free
def encoder(batch=3, grid=(5, 6), heads=4, dim=10, prefix=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1]
    logits = torch.randn(batch, heads, prefix + n, prefix + n, generator=g)
    attention = logits.softmax(-1)
    selected, keys = (torch.randn(batch, prefix + n, width, generator=g) for width in (dim, 8))
    row = attention[:, :, 0, prefix:]
    return VisionOutputs(selected, grid, torch.nn.Identity(), prefix, row, keys, {3: attention})


@pytest.mark.parametrize("keep", [1, 2, 7, 14, 15, 16, 29, 0.4])
@pytest.mark.parametrize("method", METHODS)
def test_prune_merges_everything_into_keep_slots(keep, method):
    vision = encoder()
    plan = prune(vision, keep, layer=3, method=method)
    assert len(plan) == (keep if isinstance(keep, int) else 12)
    assert (plan.index.diff(dim=1) > 0).all()
    assert plan.apply(vision.features).isfinite().all() and (plan.source() >= 0).all()
    slots = plan.source()
    # every slot holds somebody
    assert all(len(set(row)) == len(plan) for row in slots.tolist())
    for b in range(3):
        alone = prune(encoder_row(vision, b), keep, layer=3, method=method)
        assert torch.equal(alone.index[0], plan.index[b])
        torch.testing.assert_close(alone.matrix()[0], plan.matrix()[b], atol=1e-5, rtol=1e-5)


def encoder_row(vision, b):
    one = slice(b, b + 1)
    attention = {layer: weights[one] for layer, weights in vision.attention.items()}
    return VisionOutputs(vision.selected[one], vision.grid, vision.project, vision.num_prefix,
                         vision.cls_row[one], vision.keys[one], attention)


def test_prune_all_is_the_identity_and_one_round_is_the_match():
    vision = encoder()
    for keep in (30, 1.0):
        assert torch.equal(prune(vision, keep).apply(vision.features), vision.features)
    row = vision.cls_row.mean(1)
    received = vision.attention[3].mean((1, 2))[:, 1:]
    for layer, importance in ((None, row), (3, row + received)):
        pairs = match(vision.keys[:, 1:], importance, 12, 0, 0)
        want = ensemble(pairs, torch.ones(3, 30))[0]
        plan = prune(vision, 18, layer=layer)
        assert torch.equal(plan.index, want.index)
        assert torch.equal(plan.apply(vision.features), want.apply(vision.features))
        assert torch.equal(prune(vision, 18, importance=importance).index, want.index)


def test_prune_with_registers_and_a_question():
    vision = encoder(prefix=3)
    asked = torch.zeros(3, 30).index_fill(1, torch.tensor([4, 11, 12]), 3.0)
    plan = prune(vision, 15, importance=asked)
    assert plan.kept()[:, [4, 11, 12]].all()
    vision.cls_row = None
    with pytest.raises(ValueError, match="vision.cls_row is None"):
        prune(vision, 15)
    assert len(prune(vision, 15, importance=asked)) == 15


def test_merging_lowers_redundancy():
    centres = torch.randn(1, 6, 10, generator=torch.Generator().manual_seed(0))
    vision = encoder(1)
    noise = torch.randn(1, 30, 10, generator=torch.Generator().manual_seed(1))
    features = centres[:, torch.arange(30) % 6] + 0.05 * noise
    vision.selected = torch.cat([vision.selected[:, :1], features], 1)
    vision.keys = vision.selected
    out = prune(vision, 6).apply(vision.features)
    assert redundancy(out).item() < 0.9 < redundancy(features).item()


# ---------------------------------------------------------------- the dual encoder
CONFIG = dict(img_size=32, patch_size=8, vision_dim=32, vision_heads=2, vocab=20, context=10,
              text_dim=24, text_heads=2, num_layers=3, embed_dim=16, r_image=3, r_text=2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    built = CrossGETCLIP(**CONFIG)
    for name, parameter in built.named_parameters():
        if "cross_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return built.eval()


def batch(n=4, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    text = torch.randint(1, 19, (n, 10), generator=g)
    for i in range(n):
        text[i, 4 + i % 5] = 19
        text[i, 5 + i % 5 :] = 0
    return torch.rand(n, 3, 32, 32, generator=g).to(device), text.to(device)


def test_shapes_sizes_and_rows(model):
    images, text = batch()
    image, words = model.encode_image(images), model.encode_text(text)
    assert image.feature.shape == words.feature.shape == (4, 16)
    assert image.cross.shape == words.cross.shape == (3, 4, 16)
    assert image.size.shape == (4, 18 - 9) and (image.size.sum(1) == 18).all()
    assert [len(plan) for plan in image.plans] == schedule(3, 18, 3)[1:]
    assert [len(plan) for plan in words.plans] == schedule(2, 11, 3, 3)[1:]
    assert model(images, text).shape == (4, 4)
    alone = model.encode_image(images[2:3]), model.encode_text(text[2:3])
    torch.testing.assert_close(alone[0].feature, image.feature[2:3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone[1].feature, words.feature[2:3], atol=1e-5, rtol=1e-4)


def test_all_layers_as_one_plan(model):
    images, _ = batch()
    plans = model.encode_image(images).plans
    total = plans[0].then(plans[1]).then(plans[2])
    assert total.kept()[:, [0, 17]].all() and (total.source() >= 0).all()
    sizes = torch.zeros(4, 9).scatter_add(1, total.source(), torch.ones(4, 18))
    assert torch.equal(sizes, model.encode_image(images).size)


def test_eot_is_followed(model):
    _, text = batch(6)
    eot = text.argmax(-1)
    for plan in model.encode_text(text).plans:
        assert plan.kept().gather(1, eot[:, None]).all()
        eot = plan.source().gather(1, eot[:, None])[:, 0]
    padded = torch.cat([text[:, :9], text[:, :1]], 1)
    padded[:, 9] = 0
    assert torch.equal(padded.argmax(-1), text.argmax(-1))


def test_text_is_causal_without_merging(model):
    _, text = batch(1)
    other = text.clone()
    other[0, 5:] = torch.tensor([3, 7, 2, 8, 5])                            # behind [EOT]
    features = [model.encode_text(t, r=0).feature for t in (text, other)]
    torch.testing.assert_close(*features)
    changed = text.clone()
    changed[0, 1] = (text[0, 1] + 1) % 18 + 1
    assert (model.encode_text(changed, r=0).feature - features[0]).abs().max() > 1e-3


def test_size_in_the_attention_counts_a_merged_key_as_often():
    torch.manual_seed(0)
    attention = crossget_encoder.Attention(16, 2)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 5, 16)
    doubled = torch.cat([x, x[:, 3:4], x[:, 3:4]], 1)                       # token 3 three times
    size = torch.tensor([[1.0, 1.0, 1.0, 3.0, 1.0]])
    one = attention(x, size.log()[:, None, None])[0]
    many = attention(doubled, torch.zeros(1, 1, 1, 7))[0]
    torch.testing.assert_close(one, many[:, :5], atol=1e-5, rtol=1e-5)


def test_sizes_reach_the_attention_of_a_block(model):
    block, x = model.visual.transformer.resblocks[0], torch.randn(2, 9, 32)
    size = torch.ones(2, 9)
    uneven = size.index_fill(1, torch.tensor([3]), 5.0)
    assert (block(x, uneven, 0)[0] - block(x, size, 0)[0]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["image", "text"])
def test_past_of_the_cross_token(model, kind):
    """Images: its own state after the layer before; text: the state of [EOT]."""
    images, text = batch()
    tower, seen = (model.visual.transformer, []) if kind == "image" else (model.transformer, [])
    for block in tower.resblocks[:2]:
        block.register_forward_hook(lambda _, args, out: seen.append((args[0], out[0])))
    model.encode_image(images, r=0) if kind == "image" else model.encode_text(text, r=0)
    past = seen[0][1][:, -1] if kind == "image" else seen[0][1][range(4), text.argmax(-1)]
    torch.testing.assert_close(seen[1][0][:, -1], past + getattr(tower, f"cross_{kind}")[:, 1])


def test_untrained_cross_token_is_a_second_cls():
    torch.manual_seed(0)
    model = CrossGETCLIP(**CONFIG | dict(r_image=0))
    seen = []
    last = model.visual.transformer.resblocks[-1]
    last.register_forward_hook(lambda _, args, out: seen.append(out[0]))
    model.encode_image(batch()[0])
    torch.testing.assert_close(seen[0][:, 0], seen[0][:, -1], atol=1e-5, rtol=1e-4)


def test_gradients_of_the_losses(model):
    images, text = batch()
    losses = model.losses(images, text)
    losses["kd"].backward(retain_graph=True)
    moved = {name for name, p in model.named_parameters()
             if p.grad is not None and p.grad.abs().sum() > 0}
    # all the rest is detached
    assert moved == {"visual.transformer.cross_image", "transformer.cross_text"}
    losses["ita"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    early = model.visual.transformer.cross_image.grad[0].abs().sum(-1)
    assert (early > 0).all()


def test_losses_by_hand(model):
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    m = (p + q) / 2
    want = ((m * (m / p).log()).sum(-1) + (m * (m / q).log()).sum(-1)).mean() / 2
    torch.testing.assert_close(cross_loss(a, b).double(), want, atol=1e-6, rtol=1e-5)
    assert cross_loss(a, a).abs() < 1e-6
    images, text = batch()
    logits = model(images, text).double()
    goal = torch.arange(4)
    plain = (F.cross_entropy(logits, goal) + F.cross_entropy(logits.T, goal)) / 2
    got = model.losses(images, text)["ita"].double()
    torch.testing.assert_close(got, plain, atol=1e-5, rtol=1e-5)
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    soft = same.double() / same.sum(1, keepdim=True)
    shared = (F.cross_entropy(logits, soft) + F.cross_entropy(logits.T, soft)) / 2
    got = model.losses(images, text, same)["ita"].double()
    torch.testing.assert_close(got, shared, atol=1e-5, rtol=1e-5)


def test_options(model):
    images, _ = batch()
    base = model.encode_image(images)
    unguided = model.encode_image(images, guidance=0.0)
    assert not torch.equal(base.plans[0].index, unguided.plans[0].index)
    bipartite = model.encode_image(images, method="bipartite")
    assert not torch.equal(base.plans[0].index, bipartite.plans[0].index)
    untouched = model.encode_image(images, r=0)
    assert untouched.plans == [None] * 3 and (untouched.size == 1).all()
    again = CrossGETCLIP(**CONFIG)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode_image(images).feature, base.feature)


def test_meta_device():
    with torch.device("meta"):
        model = CrossGETCLIP(**CONFIG)
    out = model(*batch(device="meta"))
    assert out.is_meta and out.shape == (4, 4)
    losses = model.losses(*batch(device="meta"))
    assert losses["ita"].is_meta and losses["kd"].shape == ()
    with torch.device("meta"):
        selected, row, keys = torch.empty(2, 31, 8), torch.empty(2, 3, 30), torch.empty(2, 31, 4)
    plan = prune(VisionOutputs(selected, (5, 6), len, 1, row, keys), 9)
    assert plan.index.shape == (2, 9) and plan.index.is_meta


def test_bfloat16(model):
    images, text = batch()
    want = model(images, text)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, text)
        losses = model.losses(images, text)
        plan = prune(encoder(), 12)
    assert out.isfinite().all()
    assert (out.float() - want).abs().max() < 0.15 * want.abs().max() + 0.05
    (losses["ita"] + losses["kd"]).backward()
    # the matching stays in float32
    assert torch.equal(plan.index, prune(encoder(), 12).index)
    half = CrossGETCLIP(**CONFIG).to(torch.bfloat16)
    assert half.encode_image(images.bfloat16()).feature.dtype == torch.bfloat16
    assert half(images.bfloat16(), text).isfinite().all()
    double = CrossGETCLIP(**CONFIG).double()
    seen, read = double.encode_image(images.double()), double.encode_text(text)
    assert seen.feature.dtype == read.feature.dtype == torch.float64


def test_compile():
    torch._dynamo.reset()
    images, text = batch()
    # one layer: tracing takes seconds a layer
    model = CrossGETCLIP(**CONFIG | dict(num_layers=1)).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(images, text), model(images, text), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("call, message", [
    (lambda m: match(torch.zeros(1, 5, 2), torch.zeros(1, 5), -1),
     "r=-1: needs an integer of at least 0"),
    (lambda m: match(torch.zeros(1, 5, 2), torch.zeros(1, 5), 1, method="tome"), "method='tome'"),
    (lambda m: match(torch.zeros(1, 5, 2), torch.zeros(1, 4), 1), r"importance has shape \(1, 4\)"),
    (lambda m: importance_cosine(torch.rand(2, 5, 4), torch.rand(2, 5)),
     r"query has shape \(2, 5\) but needs \(B, d\) = \(2, 4\)"),
    (lambda m: importance_attention(torch.rand(2, 5, 4)), r"attn .*\(B, t, t\)"),
    (lambda m: merges(-1, 5, 2), "r=-1"),
    (lambda m: schedule(2, 9.0, 3), "num_tokens=9.0"),
    (lambda m: rate("5", 9, 3), "keep='5'"),
    (lambda m: m.encode_image(torch.zeros(2, 3, 32, 32), r=1.5), "r=1.5"),
    (lambda m: prune(encoder(), 0), "keep=0"),
    (lambda m: prune(encoder(), 31), "keep=31 but there are 30"),
    (lambda m: prune(encoder(), 3, layer=1), r"layer=1 but vision.attention holds \[3\]"),
    (lambda m: prune(VisionOutputs(torch.zeros(1, 5, 2), (2, 2), len), 2), "vision.keys is None"),
    (lambda m: m.encode_image(torch.zeros(2, 3, 32, 40)), "needs 32 x 32"),
    (lambda m: m.encode_image(torch.zeros(2, 1, 32, 32)), "1 channels"),
    (lambda m: m.encode_image(torch.zeros(0, 3, 32, 32)), "empty"),
    (lambda m: m.encode_text(torch.zeros(2, 11, dtype=torch.long)), "2 <= L <= 10"),
    (lambda m: CrossGETCLIP(**CONFIG | dict(patch_size=7)), "not a multiple of 7"),
    (lambda m: CrossGETCLIP(**CONFIG | dict(text_heads=5)), "num_heads=5"),
])
def test_bad_input(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)
