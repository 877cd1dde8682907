"""OneFormer's words: sentences of tasks, lists of texts, whole-word ids, the text encoder."""

import pytest
import torch

from vtlib.segmentation import TextEncoder, TextMapper, WordTokenizer, task_ids, text_list
from vtlib.segmentation.oneformer_text import draw_task

NAMES = ("sky", "grass", "cat", "dog")
LENGTH, VOCAB, WIDTH = 7, 15, 8


def make(num_context=2, **options):
    torch.manual_seed(0)
    return TextMapper(TextEncoder(VOCAB, LENGTH, WIDTH, 2, 2, **options), num_context).eval()


def ids():
    rows = [[13, 3, 4, 14, 0, 0, 0], [13, 3, 4, 5, 6, 14, 0], [13, 9, 14, 0, 0, 0, 0]]
    return torch.tensor([rows])


def test_ids_of_the_three_sentences():
    got = task_ids(["semantic", "instance", "panoptic"])
    assert got.shape == (3, 77) and got.dtype == torch.int64
    assert got[0, :8].tolist() == [49406, 518, 10549, 533, 29119, 1550, 49407, 0]
    assert got[1, :7].tolist() == [49406, 518, 10549, 533, 34572, 49407, 0]
    assert got[2, :8].tolist() == [49406, 518, 10549, 533, 1072, 24755, 49407, 0]
    assert (got[:, 8:] == 0).all()


def test_text_list_is_in_the_order_of_classes():
    got = text_list("panoptic", torch.tensor([3, 0, 2, 2]), NAMES, 6)
    assert got == [
        "a photo with a sky", "a photo with a cat", "a photo with a cat", "a photo with a dog",
        "a panoptic photo", "a panoptic photo",
    ]
    assert text_list("instance", [], NAMES, 2) == ["an instance photo"] * 2
    cut = text_list("semantic", [2, 1, 0], NAMES, 2)
    assert cut == ["a photo with a sky", "a photo with a grass"]
    assert len(text_list("panoptic", [0] * 200, NAMES, 150 - 16)) == 134


def test_words_to_ids():
    tokenizer = WordTokenizer(["a photo with a cat", "a photo with a dog"], 6)
    got = tokenizer(["A photo with a cat", "a bird"])
    start, end = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert got[:, 0].tolist() == [start] * 2 and got[1].tolist() == [start, 2, 1, end, 0, 0]
    assert got[0, -1] == end and got.max() == end                        # cut, and its end is there
    assert tokenizer.vocab_size == 5 + 4 and tokenizer([]).shape == (0, 6)


def test_the_sentence_is_read_at_its_end_token():
    encoder = make().text_encoder
    given = ids()[0]
    changed = given.clone()
    changed[0, 4:] = 7                                   # behind the end: nobody reads it
    torch.testing.assert_close(encoder(changed), encoder(given))
    changed[0, 2] = 7
    assert not torch.allclose(encoder(changed)[0], encoder(given)[0], atol=1e-4)
    both = make(causal=False).text_encoder
    changed = given.clone()
    changed[0, 4:] = 7
    assert not torch.allclose(both(changed)[0], both(given)[0], atol=1e-5)


def test_context_rows_follow_and_no_sentence_made_them():
    text = make()
    got = text(ids())
    assert got.shape == (1, 5, WIDTH)
    assert torch.equal(got[0, 3:], text.prompt_ctx.weight)
    torch.testing.assert_close(got[0, :3], text.text_projector(text.text_encoder(ids()[0])))
    assert make(0)(ids()).shape == (1, 3, WIDTH)


def test_against_torchs_own_layers():
    encoder = make().text_encoder
    x = encoder.token_embedding(ids()[0]) + encoder.positional_embedding
    mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
    for block in encoder.transformer.resblocks:
        attention = torch.nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        attention.load_state_dict(block.attn.state_dict())
        y = block.ln_1(x)
        x = x + attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(y * torch.sigmoid(1.702 * y))
    x = encoder.ln_final(x)
    want = torch.stack([x[0, 3], x[1, 5], x[2, 2]])
    torch.testing.assert_close(encoder(ids()[0]), want, atol=1e-5, rtol=1e-4)


def test_tasks_are_drawn_by_thirds():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_task(generator) for _ in range(3000)]
    for task, share in (("semantic", 0.33), ("instance", 0.33), ("panoptic", 0.34)):
        assert abs(drawn.count(task) / 3000 - share) < 0.03
    again = torch.Generator().manual_seed(0)
    assert drawn[:20] == [draw_task(again) for _ in range(20)]


def test_wrong_words():
    with pytest.raises(ValueError, match="task='depth'"):
        task_ids(["depth"])
    with pytest.raises(ValueError, match="tasks is 'semantic'"):
        task_ids("semantic")
    with pytest.raises(ValueError, match="length=3"):
        task_ids(["semantic"], 3)
    with pytest.raises(ValueError, match=r"classes has 0 ... 4: 4 names"):
        text_list("semantic", [0, 4], NAMES, 3)
    with pytest.raises(ValueError, match="count=0"):
        text_list("semantic", [0], NAMES, 0)
    with pytest.raises(ValueError, match="texts is a str"):
        WordTokenizer("a cat")
    with pytest.raises(ValueError, match="ids is torch.int64"):
        make()(ids()[0])
    with pytest.raises(ValueError, match=r"ids.*=15 is no place"):
        make()(ids() + 1)
    with pytest.raises(ValueError, match="encoder is"):
        TextMapper(None)
    with pytest.raises(ValueError, match="generator is a"):
        draw_task(None)
