"""OneFormer: how queries are formed, masked attention, the contrast, weights by other names."""

import math

import pytest
import torch
import torch.nn.functional as F

from vtlib.segmentation import ConvPyramid, OneFormer, Predictor, TextEncoder, TextMapper
from vtlib.segmentation.oneformer import allowed, contrastive_loss
from vtlib.segmentation.oneformer_nets import sine_positions

QUERIES, CONTEXT, LENGTH, VOCAB, WIDTH = 7, 2, 8, 20, 16
GRIDS = ((2, 3), (4, 6), (8, 11))


def make_predictor(**options):
    torch.manual_seed(0)
    return Predictor(**dict(
        num_classes=4, num_queries=QUERIES, embed_dim=WIDTH, num_heads=2, hidden_dim=24,
        num_layers=4,
    ) | options).eval()


def make():
    torch.manual_seed(0)
    text = TextMapper(TextEncoder(VOCAB, LENGTH, WIDTH, 1, 2), CONTEXT)
    pixels = ConvPyramid(WIDTH, (8, 8, 16, 16, 16), 4)
    return OneFormer(pixels, make_predictor(), text, task_length=LENGTH).eval()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def maps():
    levels = [random(2, WIDTH, *grid, seed=i) for i, grid in enumerate(GRIDS)]
    return levels, random(2, WIDTH, 16, 22, seed=3), random(2, WIDTH, seed=4)


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(5))


def text_ids(batch=2):
    drawn = torch.Generator().manual_seed(6)
    ids = torch.randint(1, VOCAB - 1, (batch, QUERIES - CONTEXT, LENGTH), generator=drawn)
    ids[..., -1] = VOCAB - 1
    return ids


# ------------------------------------------------------------------------------------ the contrast
def test_contrast_against_a_loop():
    q, t, scale = random(4, 5, 3), random(4, 5, 3, seed=1), 2.0
    rows = []
    for i in range(4):
        row = []
        for j in range(4):
            a, b = q[i].flatten(), t[j].flatten()
            row.append(math.exp(scale) * float(a @ b / (a.norm() * b.norm())))
        rows.append(row)
    want = 0.0
    for i in range(4):
        across = sum(math.exp(rows[i][j]) for j in range(4))
        down = sum(math.exp(rows[j][i]) for j in range(4))
        want += (math.log(across) + math.log(down) - 2 * rows[i][i]) / 4
    got = contrastive_loss(q, t, torch.tensor(scale))
    torch.testing.assert_close(float(got), want, atol=1e-5, rtol=1e-5)


def test_contrast_of_alike_of_one_and_of_scaled_pictures():
    q, t, scale = random(1, 5, 3), random(1, 5, 3, seed=1), torch.tensor(2.0)
    assert contrastive_loss(q, t, scale) == 0
    alike = contrastive_loss(q.expand(6, -1, -1), t.expand(6, -1, -1), scale)
    torch.testing.assert_close(float(alike), 2 * math.log(6))
    q, t = random(3, 5, 3), random(3, 5, 3, seed=1)
    scaled = contrastive_loss(q * torch.tensor([2.0, 5.0, 0.1])[:, None, None], t, scale)
    torch.testing.assert_close(scaled, contrastive_loss(q, t, scale))


def test_the_scale_ends_at_100():
    q, t = random(3, 5, 3), random(3, 5, 3, seed=1)
    at = contrastive_loss(q, t, torch.tensor(math.log(100)))
    torch.testing.assert_close(contrastive_loss(q, t, torch.tensor(9.0)), at)
    assert not torch.allclose(contrastive_loss(q, t, torch.tensor(4.0)), at)


def test_a_picture_is_one_sample():
    """Query i is compared with text i: in another order they are another sample, not a set."""
    q = random(3, 5, 3)
    scale = torch.tensor(1.0)
    assert contrastive_loss(q.flip(1), q, scale) > 1.5 * contrastive_loss(q, q, scale)


# ------------------------------------------------------------------------------- forming queries
def test_a_constant_map_leaves_the_values_as_they_are(maps):
    """Image features reach the keys of the query transformer alone."""
    model, (_, features, token) = make_predictor(), maps
    seen = []
    layer = model.class_transformer.decoder.layers[0]
    layer.multihead_attn.register_forward_hook(lambda _, args, out: seen.append(args))
    model.form_queries(features, token)
    model.form_queries(torch.ones_like(features), token)
    (_, key, value), (_, other_key, other_value) = seen
    assert torch.equal(value, other_value) and not torch.allclose(key, other_key)
    assert torch.equal(value[0], sine_positions((16, 22), WIDTH))


def test_queries_begin_as_copies_of_the_normed_token(maps):
    model, (_, features, token) = make_predictor(), maps
    seen = []
    model.class_transformer.register_forward_pre_hook(lambda _, args: seen.append(args))
    queries = model.form_queries(features, token)
    copies, place, _ = seen[0]
    normed = model.decoder_norm(token)
    assert torch.equal(copies, normed[:, None].expand(-1, QUERIES - 1, -1))
    assert torch.equal(place[0], model.query_embed.weight[:-1])
    assert queries.shape == (2, QUERIES, WIDTH) and torch.equal(queries[:, -1], normed)


def test_the_token_is_normed(maps):
    """Token ids are large numbers: the shared LayerNorm takes their scale away."""
    model, (levels, features, token) = make_predictor(), maps
    want = model(levels, features, token).last
    got = model(levels, features, 1000 * token).last
    torch.testing.assert_close(got.class_logits, want.class_logits, atol=1e-3, rtol=1e-3)


def test_permuted_queries_permute_outputs(maps):
    model, other = make_predictor(), make_predictor()
    order = torch.tensor([3, 1, 5, 0, 2, 4, QUERIES - 1])            # the task token stays the last
    with torch.no_grad():
        other.query_embed.weight.copy_(model.query_embed.weight[order])
    want, got = model(*maps), other(*maps)
    for a, b in zip((*got.earlier, got.last), (*want.earlier, want.last), strict=True):
        torch.testing.assert_close(a.class_logits, b.class_logits[:, order], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.mask_logits, b.mask_logits[:, order], atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------- masked attention
def test_allowed_is_the_resized_mask():
    logits = torch.tensor([[[[4.0, -1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])
    want = [[[[True, False], [False, False]], [[False, False], [False, False]]]]
    assert allowed(logits, (2, 2)).tolist() == want
    assert allowed(logits, (1, 1)).flatten().tolist() == [True, False]     # mean 0.25, mean -1


def masks_seen(model, maps):
    seen = []
    for layer in model.transformer_cross_attention_layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append((args[2], args[4])))
    out = model(*maps)
    return out, seen


def test_levels_in_turn_and_who_may_look_where(maps):
    out, seen = masks_seen(make_predictor(), maps)
    assert [memory.shape[1] for memory, _ in seen] == [h * w for h, w in (*GRIDS, GRIDS[0])]
    for (_, mask), before, grid in zip(seen, out.earlier, (*GRIDS, GRIDS[0]), strict=True):
        want = allowed(before.mask_logits, grid).flatten(2)
        want[~want.any(-1)] = True
        assert torch.equal(mask[:, 0], want) and not mask.all()


def test_a_query_with_nothing_allowed_looks_everywhere(maps):
    model = make_predictor()
    levels, features, token = maps
    features = torch.zeros_like(features)
    features[:, 0] = 1
    with torch.no_grad():                                                # all masks are one number
        model.mask_embed.layers[-1].weight.zero_()
        model.mask_embed.layers[-1].bias.fill_(-1.0)
    out, seen = masks_seen(model, (levels, features, token))
    assert (out.last.mask_logits < 0).all() and all(mask.all() for _, mask in seen)
    assert out.last.class_logits.isfinite().all()


def test_masks_give_no_gradient_through_attention(maps):
    levels, features, token = maps
    out = make_predictor()(levels, features.requires_grad_(), token)
    assert not allowed(out.last.mask_logits, (2, 3)).requires_grad


def test_every_layer_predicts(maps):
    out = make_predictor()(*maps)
    assert len(out.earlier) == 4
    shapes = {(tuple(p.class_logits.shape), tuple(p.mask_logits.shape)) for p in out.earlier}
    assert shapes == {((2, QUERIES, 5), (2, QUERIES, 16, 22))}
    assert not torch.equal(out.earlier[0].class_logits, out.earlier[1].class_logits)


def test_attention_and_masks_by_hand(maps):
    """One layer without masks, with torch's own attention."""
    model, levels = make_predictor(num_layers=1), maps[0]
    layer = model.transformer_cross_attention_layers[0]
    torch_attention = torch.nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    torch_attention.load_state_dict(layer.multihead_attn.state_dict())
    out, seen = masks_seen(model, maps)
    memory, mask = seen[0]
    sine = sine_positions(GRIDS[0], WIDTH)
    x = out.formed
    want, _ = torch_attention(
        x + model.query_embed.weight, memory + sine, memory,
        attn_mask=~mask.expand(-1, 2, -1, -1).flatten(0, 1),
    )
    x = layer.norm(x + want)
    x = model.transformer_self_attention_layers[0](x, model.query_embed.weight[None])
    x = model.transformer_ffn_layers[0](x)
    torch.testing.assert_close(out.queries, x, atol=1e-5, rtol=1e-4)
    assert torch.equal(memory[0], levels[0][0].flatten(1).T + model.level_embed.weight[0])


# ------------------------------------------------------------------------------------ the whole
def test_the_task_changes_the_answer(images):
    model = make()
    answers = [model(images, task).last.class_logits for task in ("semantic", "instance")]
    assert (answers[0] - answers[1]).abs().max() > 1e-3
    mixed = model(images, ["semantic", "instance"]).last.class_logits
    torch.testing.assert_close(mixed[0], answers[0][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed[1], answers[1][1], atol=1e-5, rtol=1e-4)


def test_the_task_token_is_made_of_raw_ids():
    model = make()
    first, second = model.task_mlp.layers
    ids = torch.tensor([[49406.0, 518, 10549, 533, 34572, 49407, 0, 0]])
    want = second(F.relu(first(ids)))
    torch.testing.assert_close(model.task_token("instance", torch.zeros(1)), want)
    torch.testing.assert_close(model.task_token(ids.long(), torch.zeros(1)), want)


def test_cosines_of_the_three_tokens():
    """The card's, over 20 random MLPs: 0.68, 0.90, 0.72."""
    found = []
    for seed in range(20):
        torch.manual_seed(seed)
        model = OneFormer(torch.nn.Identity(), make_predictor(embed_dim=256, num_layers=0))
        torch.manual_seed(seed)
        for layer in model.task_mlp.layers:
            layer.reset_parameters()
        tasks = ("semantic", "instance", "panoptic")
        token = model.predictor.decoder_norm(model.task_token(tasks, torch.zeros(3)))
        unit = F.normalize(token, dim=1)
        cosine = unit @ unit.T
        found.append(torch.stack([cosine[0, 1], cosine[0, 2], cosine[1, 2]]))
    mean = torch.stack(found).mean(dim=0)
    assert (mean - torch.tensor([0.68, 0.90, 0.72])).abs().max() < 0.05, mean


def test_texts_and_their_contrast(images):
    model = make()
    out = model(images, "panoptic", text_ids())
    assert out.texts.shape == out.formed.shape
    want = contrastive_loss(out.formed, out.texts, model.logit_scale)
    assert torch.equal(model.contrast(out), want)
    assert math.isclose(model.logit_scale.item(), math.log(1 / 0.07), rel_tol=1e-6)
    without = model(images, "panoptic")
    assert without.texts is None
    assert torch.equal(without.last.mask_logits, out.last.mask_logits)


def test_every_parameter_gets_a_finite_gradient(images):
    model = make().train()
    out = model(images, ["panoptic", "semantic"], text_ids())
    loss = model.contrast(out)
    for prediction in (out.last, *out.earlier):
        loss = loss + prediction.class_logits.square().mean()
        loss = loss + prediction.mask_logits.sigmoid().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_dropout_follows_the_global_numbers(images):
    model = make().train()
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(model(images).last.class_logits)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("size", [(64, 64), (70, 45), (33, 97)])
def test_three_answers_at_the_size_of_the_picture(size):
    model = make()
    picture = torch.rand(1, 3, *size)
    assert model.segment(picture, "semantic", {1}).shape == (1, 4, *size)
    panoptic = model.segment(picture, "panoptic", {1}, threshold=0.0, overlap=0.0)
    assert panoptic.ids.shape == (1, *size)
    assert model.segment(picture, "instance", {1}, num_best=5).masks.shape == (1, 5, *size)


def test_state_dict_round_trip(images):
    model, other = make(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(images).last.class_logits, other(images).last.class_logits)


# ------------------------------------------------------------------------------------- parameters
def test_parameters_of_the_smallest_official_configuration():
    """The predictor, the text branch and the task MLP with ADE20K's 150 classes and 150 queries;
    the numbers are those of transformers' modules at the same sizes."""
    with torch.device("meta"):
        model = OneFormer(torch.nn.Identity(), Predictor(), TextMapper(TextEncoder()))

    def count(part):
        return sum(parameter.numel() for parameter in part.parameters())
    assert count(model.predictor) == 17_708_439
    assert count(model.text) == 17_542_912
    assert count(model.task_mlp) == 85_760


# --------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("change, message", [
    (lambda a, b, c: (a[:2], b, c), "levels is a list but needs to be a list of 3"),
    (lambda a, b, c: ([a[0][:, 1:], *a[1:]], b, c), r"levels\[0\] has shape .* needs D = 16"),
    (lambda a, b, c: (a, b[0], c), "mask_features has shape"),
    (lambda a, b, c: (a, b, c[0]), "task_token has shape"),
    (lambda a, b, c: (a, b, c[:, 1:]), "task_token has shape"),
    (lambda a, b, c: (a, b[:1], c), "mask_features has .* pictures"),
])
def test_wrong_maps(maps, change, message):
    with pytest.raises(ValueError, match=message):
        make_predictor()(*change(*maps))


def test_wrong_arguments(images):
    model = make()
    with pytest.raises(ValueError, match="task='depth' is none of"):
        model(images, "depth")
    with pytest.raises(ValueError, match="task has 1 names but there are 2 pictures"):
        model(images, ["semantic"])
    with pytest.raises(ValueError, match="task is torch.int64"):
        model(images, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="text_ids make 6 texts"):
        model(images, "panoptic", text_ids()[:, 1:])
    with pytest.raises(ValueError, match="out has no texts"):
        model.contrast(model(images))
    with pytest.raises(ValueError, match="built with text=None"):
        OneFormer(model.pixels, model.predictor)(images, "panoptic", text_ids())
    with pytest.raises(ValueError, match="queries and texts have shapes"):
        contrastive_loss(random(2, 3, 4), random(2, 4, 4), torch.tensor(1.0))
    with pytest.raises(ValueError, match="num_queries=1"):
        Predictor(num_queries=1)
    with pytest.raises(ValueError, match="predictor is"):
        OneFormer(model.pixels, None)
    with pytest.raises(ValueError, match="other channels"):
        OneFormer(model.pixels, model.predictor, TextMapper(TextEncoder(9, 8, 8, 1, 2)))
