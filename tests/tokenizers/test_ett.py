"""ETT: where the captions' gradient goes, what each stage leaves alone, and the three ways to hand
an image to a language model."""

import pytest
import torch
import torch.nn.functional as F

from tests.wrong import raw_errors
from vtlib.quantize import VectorQuantizer
from vtlib.tokenizers.ett import ETT, caption_loss

NET = dict(patch_size=2, channels=8, multipliers=(1, 2), num_res_blocks=1, groups=4)
TOKENIZER = dict(dim=4, codebook_size=16, norm=4.0, net=NET)
DECODER = dict(embed_dim=16, num_layers=2, num_heads=2, hidden_dim=24)
V = 11


def made(**options):
    torch.manual_seed(0)
    return ETT(**{**dict(tokenizer=TOKENIZER, vocab_size=V, decoder=DECODER), **options})


@pytest.fixture(scope="module")
def batch():
    """images (3, 3, 8, 12) of 2 x 3 tokens, ids (3, 5), valid: texts of 5, 4, 2 words."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 8, 12, generator=generator)
    ids = torch.randint(1, V, (3, 5), generator=generator)
    valid = torch.arange(5) < torch.tensor([[5], [4], [2]])
    return images, ids, valid


def part(model, *names):
    return {
        name: value.detach().clone() for name, value in model.named_parameters()
        if name.startswith(names)
    }


def train(model, batch, steps=3):
    """With every weight in the optimizer's list, and weight decay."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    for _ in range(steps):
        loss, parts = model.loss(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return parts


def moved(model, before):
    """Which of the weights are other than before, to the bit."""
    return {
        name for name, value in model.named_parameters()
        if name in before and not torch.equal(value, before[name])
    }


# ------------------------------------------------------------------------------------------ sizes
def test_official_sizes():
    with torch.device("meta"):
        model = ETT(generates=True)
    def count(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    assert count(model.decoder, model.embed_tokens) == 1_543_714_304            # Qwen2.5-1.5B
    assert count(model.bridge) == 256 * 1536 + 1536 + 1536**2 + 1536
    assert count(model.head) == 131_072 * 1537
    projector = [type(layer).__name__ for layer in model.bridge.projector]
    assert projector == ["Linear", "GELU", "Linear"] and model.alpha == 0.25


# -------------------------------------------------------------------------------------- gradients
def caption_gradients(model, batch):
    images, ids, valid = batch
    loss = caption_loss(model(images, ids), ids, valid)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_the_captions_gradient_reaches_the_tokenizer_through_embeddings_only(batch):
    grads = caption_gradients(made(), batch)
    for name, grad in grads.items():
        if name.startswith(("tokenizer.decoder", "tokenizer.post_quant_conv")):
            assert grad is None, name
        else:
            assert grad is not None and grad.isfinite().all() and grad.any(), name
    assert (grads["tokenizer.quantizer.codebook"].abs().sum(1) > 0).all()       # every code
    grads = caption_gradients(made(inputs="indices"), batch)
    assert all(grad is None for name, grad in grads.items() if name.startswith("tokenizer"))
    assert grads["bridge.embedding.weight"].any()


def test_straight_through_leaves_the_codebook_without_the_captions_gradient(batch):
    """What index backpropagation is for: with a usual quantiser no code hears of the captions."""
    model = made()
    model.tokenizer.quantizer = VectorQuantizer(4, 16, learn="gradient")
    grads = caption_gradients(model, batch)
    assert grads["tokenizer.quantizer.codebook"] is None
    assert grads["tokenizer.encoder.conv_in.weight"].any()


# ----------------------------------------------------------------------------------------- stages
FROZEN = {1: ("tokenizer", "decoder", "embed_tokens"), 2: (), 3: ("tokenizer",)}


@pytest.mark.parametrize("inputs", ["embeddings", "indices"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_what_must_not_change_in_a_stage_is_the_same_to_the_bit(number, inputs, batch):
    model = made(inputs=inputs, places=6)
    model.loss(*batch)[0].backward()                   # gradients that are left over
    model.stage(number)
    before = part(model, "")
    parts = train(model, batch)
    still = part(model, *FROZEN[number]) if FROZEN[number] else {}
    assert moved(model, before) == before.keys() - still.keys()
    assert set(parts) == ({"caption", "pixels", "quantizer"} if number == 2 else {"caption"})


def test_without_alpha_the_tokenizers_decoder_stays(batch):
    """And with it, it moves, after a joint step with momentum too."""
    for alpha in (0.0, 0.25):
        model = made(alpha=alpha).stage(2)
        untouched = "tokenizer.decoder", "tokenizer.post_quant_conv"
        decoder, before = part(model, *untouched), part(model, "")
        parts = train(model, batch)
        if alpha:
            assert moved(model, before) == before.keys() and "pixels" in parts
        else:
            assert moved(model, before) == before.keys() - decoder.keys()
            assert set(parts) == {"caption"}


def test_alpha_weighs_the_tokenizers_loss(batch):
    model = made()
    tokenizer = model.tokenizer.loss(batch[0])[0].item()
    caption = made(alpha=0).loss(*batch)[0].item()
    for alpha in (0.25, 1, 4):
        model.alpha = alpha
        loss, parts = model.loss(*batch)
        assert loss.item() == pytest.approx(caption + alpha * tokenizer, rel=1e-5)
        assert parts["caption"].item() == pytest.approx(caption, rel=1e-5)
        assert not any(value.requires_grad for value in parts.values())
    with torch.no_grad():
        assert model.stage(3).loss(*batch)[0].item() == pytest.approx(caption, rel=1e-5)


def test_three_stages_one_after_the_other(batch):
    model = made()
    tokenizer = part(model, "tokenizer")
    train(model.stage(1), batch)
    assert not moved(model, tokenizer)
    train(model.stage(2), batch)
    tuned = part(model, "tokenizer")
    assert moved(model, tokenizer) == tuned.keys()
    train(model.stage(3), batch)
    assert not moved(model, tuned)
    assert all(p.requires_grad for p in model.stage(2).parameters())


# ----------------------------------------------------------------------------------- caption loss
def test_the_loss_counts_words_alone(batch):
    images, ids, valid = batch
    model = made()
    logits = model(images, ids)
    assert logits.shape == (3, 5, V)
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    want = (each.unflatten(0, (3, 4)) * valid[:, 1:]).sum() / valid[:, 1:].sum()
    torch.testing.assert_close(caption_loss(logits, ids, valid), want)
    other = ids.masked_fill(~valid, 0)
    torch.testing.assert_close(caption_loss(model(images, other), other, valid), want)
    torch.testing.assert_close(caption_loss(logits, ids), each.mean())
    question = valid.clone()
    question[:, :2] = False                                  # given, not to be predicted
    asked = (each.unflatten(0, (3, 4)) * question[:, 1:]).sum() / question[:, 1:].sum()
    torch.testing.assert_close(caption_loss(logits, ids, question), asked)


@pytest.mark.parametrize("places", [0, 6])
def test_image_tokens_may_come_in_any_order_with_their_places(places, batch):
    images, ids, valid = batch
    model = made(places=places)
    tokens = model.visual_tokens(model.tokenizer.encode(images))
    plain = model.read(tokens, ids)
    order = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)).argsort(1)
    mixed = tokens.gather(1, order[..., None].expand(-1, -1, 16))
    got = model.read(mixed, ids, order)
    torch.testing.assert_close(got, plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(caption_loss(got, ids, valid), caption_loss(plain, ids, valid))
    assert (model.read(mixed, ids) - plain).abs().max() > 1e-4      # without their places


def test_words_see_the_image_and_earlier_words_only(batch):
    images, ids, _ = batch
    model = made()
    plain = model(images, ids)
    later = ids.clone()
    later[:, 3:] = 0
    assert torch.equal(model(images, later)[:, :3], plain[:, :3])
    assert not torch.allclose(model(images.flip(0), ids), plain)


def test_indices_are_read_by_number(batch):
    images, ids, _ = batch
    model = made(inputs="indices")
    quantized = model.tokenizer.encode(images)
    want = model.bridge.embedding(quantized.indices.flatten(1))
    assert torch.equal(model.visual_tokens(quantized), want)
    model.tokenizer.quantizer.codebook.data.mul_(-1)              # other codes, the same numbers
    assert torch.equal(model.visual_tokens(quantized), want)


# ------------------------------------------------------------------------- describing, generating
def test_describe_takes_the_likeliest_words(batch):
    images, ids, _ = batch
    model = made(places=6).eval()
    got = model.describe(images, ids[:, :2], end=0, max_words=4)
    text = ids[:, :2]
    for step in range(got.shape[1]):
        word = model(images, text)[:, -1].argmax(-1)
        alive = (got[:, :step] != 0).all(1)
        assert torch.equal(got[alive, step], word[alive]) and not got[~alive, step].any()
        text = torch.cat([text, got[:, step:step + 1]], dim=1)
    with torch.no_grad():
        model.embed_tokens.weight.zero_()                         # all alike: the first word
    assert model.describe(images, ids[:, :2], end=0).tolist() == [[0]] * 3


@pytest.mark.parametrize("inputs", ["embeddings", "indices"])
def test_generation_is_what_the_image_loss_trains(inputs, batch):
    """The likeliest index after the likeliest ones, as the model reads its own picture."""
    _, ids, valid = batch
    model = made(inputs=inputs, places=6, generates=True).eval()
    indices = model.generate(ids, (2, 3), valid, temperature=0)
    assert indices.shape == (3, 2, 3)
    codes = model.tokenizer.quantizer.decode(indices)
    seen = []
    model.head.register_forward_hook(lambda _, args, out: seen.append(out))
    model.tokenizer.encode = lambda images: type(model.tokenizer.quantizer(codes))(
        codes, indices, torch.zeros(()), torch.ones(())
    )
    loss = model.image_loss(torch.zeros(3, 3, 8, 12), ids, valid)
    assert torch.equal(seen[0].argmax(-1), indices.flatten(1))
    flat = F.cross_entropy(seen[0].flatten(0, 1), indices.flatten())
    torch.testing.assert_close(loss, flat)


def test_padding_of_a_prompt_changes_nothing(batch):
    images, ids, _ = batch
    model = made(generates=True).eval()
    longer, valid = F.pad(ids[:, :2], (0, 3)), torch.arange(5) < 2
    valid = valid.expand(3, -1)
    torch.testing.assert_close(
        model.image_loss(images, longer, valid), model.image_loss(images, ids[:, :2])
    )
    draws = [
        model.generate(*given, generator=torch.Generator().manual_seed(3))
        for given in ((longer, (2, 3), valid), (ids[:, :2], (2, 3)))
    ]
    assert torch.equal(*draws) and model.tokenizer.decode_indices(draws[0]).shape == images.shape
    other = model.generate(ids[:, :2], (2, 3), generator=torch.Generator().manual_seed(4))
    assert not torch.equal(other, draws[0])


def test_the_image_loss_reaches_the_codes_too(batch):
    model = made(generates=True)
    model.image_loss(batch[0], batch[1]).backward()
    for name in ("head.weight", "begin", "tokenizer.quantizer.codebook", "embed_tokens.weight"):
        assert model.get_parameter(name).grad.any(), name


# ------------------------------------------------------------------------------------- everything
def test_it_learns(batch):
    model = made(places=6)
    first = model.loss(*batch)[1]["caption"]
    train(model, batch, 25)
    assert model.loss(*batch)[1]["caption"] < 0.5 * first


def test_autocast_state_and_meta(batch):
    images, ids, valid = batch
    model, other = made(places=6), made(places=6)
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = model.loss(*batch)
    assert loss.dtype == torch.float32
    assert parts["caption"].item() == pytest.approx(
        other.loss(*batch)[1]["caption"].item(), rel=0.05
    )
    with torch.no_grad():
        next(model.parameters()).add_(1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images, ids), model(images, ids))
    far = made(generates=True).to("meta")
    loss, _ = far.loss(*(t.to("meta") for t in batch))
    assert loss.is_meta and far.image_loss(images.to("meta"), ids.to("meta")).is_meta


def test_no_error_from_deep_inside(batch):
    images, ids, valid = batch
    model = made(generates=True, places=6)
    tokens = model.visual_tokens(model.tokenizer.encode(images)).detach()
    order = torch.arange(6).expand(3, -1)
    generator = torch.Generator().manual_seed(0)
    calls = (
        (caption_loss, dict(logits=torch.rand(3, 5, V), ids=ids, valid=valid)),
        (model.loss, dict(images=images, ids=ids, valid=valid)),
        (model.read, dict(tokens=tokens, ids=ids, positions=order)),
        (model.describe, dict(images=images, ids=ids, end=0, max_words=2)),
        (model.image_loss, dict(images=images, ids=ids, valid=valid)),
        (model.generate, dict(
            ids=ids, grid=(2, 3), valid=valid, temperature=1.0, top_k=3, top_p=0.5,
            generator=generator,
        )),
        (model.stage, dict(number=2)),
    )
    for function, fits in calls:
        assert raw_errors(function, fits, part=True) == [], function
    sizes = dict(vocab_size=V, inputs="indices", alpha=0.5, places=3, generates=True)
    with torch.device("meta"):
        assert raw_errors(made, {**sizes, "tokenizer": TOKENIZER, "decoder": DECODER}) == []


@pytest.mark.parametrize("call, message", [
    (lambda m, i, t: made(inputs="codes"), "inputs='codes': needs one of"),
    (lambda m, i, t: made(alpha=-1), "alpha=-1"),
    (lambda m, i, t: m.stage(4), "number=4: needs an integer from 1 to 3"),
    (lambda m, i, t: m(i, t + V), r"ids\[0, 0\]=\d+ is no place"),
    (lambda m, i, t: m(i, t[:2]), r"ids .* needs to be torch.int64 \(B, L\) = \(3, L\)"),
    (lambda m, i, t: made(places=5)(i, t), "6 image tokens but places=5"),
    (lambda m, i, t: m.generate(t, (2, 3)), "generates=False"),
    (lambda m, i, t: m.loss(i, t[:, :1]), "two words at least"),
])
def test_bad_input(call, message, batch):
    with pytest.raises(ValueError, match=message):
        call(made(), *batch[:2])
