"""The measure tool: numbers against counting by hand, failing rows, the command on a model on the
disk."""

import contextlib
import json

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
)
from transformers.utils import is_torchvision_available

from tests.hub.tiny import IMAGE, PROMPT, L, N, greedy, lengths, make_llava, prompt, qwen_prompt
from vtlib.data import photographs
from vtlib.hub import prune
from vtlib.hub.measure import Bench, Row, Trial, agreement, main, measure, summary, table
from vtlib.hub.questions import QUESTIONS, load, pictures, questions
from vtlib.tokens import Stage

WORDS = 7  # of each row of PROMPT
TOKEN_BYTES = 2 * 2 * 12 * 4  # keys and values, heads, channels, float32: of one layer
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def by_name(rows):
    return {(row.method, row.keep): row for row in rows}


def quick(model, inputs, methods, keeps, **options):
    return measure(model, inputs, methods, keeps, **{"new_tokens": 4, "repeats": 1, **options})


# ---------------------------------------------------------------------------------------- numbers
def test_numbers_of_llava(llava):
    rows = by_name(quick(llava, PROMPT, ["divprune", "fastv"], [4, 0.5], repeats=2))
    assert list(rows) == [("unpruned", None), ("divprune", 4), ("divprune", 0.5), ("fastv", 4),
                          ("fastv", 0.5)]
    after = 2  # FastV's cut comes behind two layers of the L
    for (method, keep), row in rows.items():
        left = {None: N, 4: 4, 0.5: N // 2}[keep]
        full = {"unpruned": L, "divprune": 0, "fastv": after}[method] if keep else 0
        tokens = (full * (WORDS + N) + (L - full) * (WORDS + left)) / L
        assert row.visual_tokens == left and row.prompt_tokens == pytest.approx(tokens)
        assert row.cache_bytes == pytest.approx(2 * L * tokens * TOKEN_BYTES)  # two rows
        assert row.first_ms > 0 and row.decode_ms > 0 and row.reason is None
        assert row.peak_bytes is None  # no GPU
    assert rows["unpruned", None].equal_tokens == rows["unpruned", None].equal_answers == 1


def test_numbers_are_those_of_the_caches(qwen):
    inputs = [qwen_prompt((4, 8)), qwen_prompt((4, 4), rows=1)]
    rows = by_name(quick(qwen, inputs, ["fastv"], [0.25]))
    held = []
    for one in inputs:
        with prune(qwen, "fastv", 0.25):
            out = greedy(qwen, one, 1, return_dict_in_generate=True)
        held.append((lengths(out.past_key_values), len(one["input_ids"])))
    tokens = [sum(ls) / len(ls) for ls, _ in held]
    row = rows["fastv", 0.25]
    assert row.prompt_tokens == pytest.approx(sum(tokens) / 2)
    by_hand = sum(sum(ls) * count for ls, count in held) * TOKEN_BYTES / 2
    assert row.cache_bytes == pytest.approx(by_hand)
    assert row.visual_tokens == (2 + 1) / 2  # of 8 and 4
    assert rows["unpruned", None].visual_tokens == (8 + 4) / 2


def test_agreement_is_with_the_unpruned_answer(llava):
    inputs = prompt([1, 5, 6, "i", 7, 8, 9, 10])
    with prune(llava, "divprune", 4):
        pruned = greedy(llava, inputs, 6)[0, -6:].tolist()
    full = greedy(llava, inputs, 6)[0, -6:].tolist()
    row = quick(llava, inputs, ["divprune"], [4], new_tokens=6)[1]
    equal = sum(a == b for a, b in zip(full, pruned, strict=True))
    assert row.equal_tokens == pytest.approx(equal / 6) and row.equal_answers == (equal == 6)
    assert quick(llava, inputs, ["divprune"], [1.0])[1].equal_answers == 1  # keeps all


def test_agreement():
    assert agreement([[[1, 2]], [[3, 4]]], [[[1, 2]], [[3, 5]]]) == (0.75, 0.5)
    assert agreement([[[1, 2, 3, 4]]], [[[1, 2]]]) == (0.5, 0)  # one ended early
    assert agreement([[[1], [2]]], [[[1], [3]]]) == (0.5, 0.5)  # two rows


def test_an_answer_ends_where_it_ends(llava, monkeypatch):
    """Behind its end a batch is padded: that is no answer."""
    tokens = greedy(llava, PROMPT, 4)[:, -4:]
    end = int(tokens[0, 1])
    monkeypatch.setattr(llava.generation_config, "eos_token_id", [end, 98])
    bench = Bench(llava, [PROMPT], 4, prune)
    assert bench.answer(torch.tensor([[5, end, 0, 0], [5, 6, 7, 8]])) == [[5, end], [5, 6, 7, 8]]
    row = quick(llava, PROMPT, ["divprune"], [1.0])[1]
    assert row.equal_answers == 1


def test_one_token_has_no_time_of_a_further_one(llava):
    assert all(row.decode_ms is None for row in quick(llava, PROMPT, ["divprune"], [4],
                                                      new_tokens=1))


def test_medians_of_prompts_then_means():
    full = Trial("unpruned", None, None, answers=[[[1]], [[2]]])
    trial = Trial("x", None, 4, visual=[4, 4], lengths=[9, 11], held=[10, 30],
                  answers=[[[1]], [[3]]],
                  times=[[[50, 2, 2], [10, 3, 2], [11, 2, 90]], [[20], [30], [700]]])
    row = summary(trial, full)
    assert row.first_ms == (11 + 30) / 2 and row.decode_ms == 2  # the second never decoded
    assert (row.prompt_tokens, row.cache_bytes, row.equal_answers) == (10, 20, 0.5)


def test_runs_are_interleaved(llava):
    told = []
    quick(llava, PROMPT, ["divprune", "pool"], [4], repeats=2, progress=told.append)
    order = [line.split(": ")[1].strip() for line in told]
    names = ["unpruned", "divprune 4", "pool 4"]
    assert order == names + names[::-1] + names


# ---------------------------------------------------------------------------------- what goes wrong
def test_what_cannot_run_is_a_row(qwen):
    inputs = qwen_prompt((4, 8))
    rows = by_name(quick(qwen, inputs, ["fastervlm", "divprune"], [4, 700]))
    assert "[CLS]" in rows["fastervlm", 4].reason and rows["fastervlm", 4].first_ms is None
    assert "keep=700" in rows["divprune", 700].reason
    assert rows["divprune", 4].reason is None
    assert torch.isfinite(qwen(**inputs).logits).all()


def test_what_fails_late_is_a_row_too(llava):
    calls = []

    @contextlib.contextmanager
    def breaking(model, method, keep):
        with prune(model, method, keep) as pruned:
            yield pruned
            calls.append(keep)
            if keep == 8 and calls.count(8) == 2:
                raise MemoryError("not\nenough")

    rows = by_name(quick(llava, PROMPT, ["divprune"], [8, 4], repeats=2, prune=breaking))
    assert rows["divprune", 8] == Row("divprune", 8, reason="MemoryError: not enough")
    assert rows["divprune", 4].reason is None


def test_the_unpruned_model_must_run(llava):
    broken = {**PROMPT, "pixel_values": PROMPT["pixel_values"][:1]}
    with pytest.raises(ValueError, match="tokens"):
        quick(llava, broken, ["divprune"], [4])


def test_bad_arguments(llava):
    for wrong in ([], "prompt", [{}], None):
        with pytest.raises(ValueError, match="inputs"):
            quick(llava, wrong, ["divprune"], [4])
    with pytest.raises(ValueError, match="method='divprun' is not known"):
        quick(llava, PROMPT, ["divprun"], [4])
    for name in ("methods", "keeps"):
        with pytest.raises(ValueError, match=name):
            quick(llava, PROMPT, **{"methods": ["pool"], "keeps": [4], name: "pool"})
    for name in ("new_tokens", "repeats"):
        with pytest.raises(ValueError, match=name):
            quick(llava, PROMPT, ["divprune"], [4], **{name: 0})


def test_the_model_is_left_as_it_was(llava):
    before = llava(**PROMPT).logits
    llava.train()
    try:
        quick(llava, PROMPT, ["fastv"], [4])
        assert llava.training and llava.model.training
    finally:
        llava.eval()
    assert torch.equal(llava(**PROMPT).logits, before)


def test_options_by_a_function(llava):
    def plan(state, keep):
        return state.top(-torch.arange(4.0).expand(2, 4), keep)

    def late(model, method, keep):
        return prune(model, method, keep, stages=[Stage(L - 1, 2, plan)])

    row = quick(llava, PROMPT, ["divprune"], [4], prune=late)[1]
    assert row.visual_tokens == 2 and row.prompt_tokens == WORDS + (4 * (L - 1) + 2) / L


def test_options_go_to_prune(llava):
    rows = [quick(llava, PROMPT, ["divprune"], [4], positions=way)[1] for way in ("keep", "new")]
    assert rows[0].reason is None and "positions='new'" in rows[1].reason


# -------------------------------------------------------------------------------------- the table
def test_table():
    rows = [
        Row("unpruned", None, 576, 600, 12.34, 1.26, 3e6, None, 1.0, 1.0),
        Row("fastv", 0.25, 144.4, 217, 6.1, None, 1.5e6, None, 0.625, 0.5),
        Row("fastervlm", 64, reason="ValueError: no [CLS]"),
    ]
    assert table(rows).splitlines() == [
        "method     keep  visual  prompt  first ms  ms/token  cache MB  tokens %  answers %",
        "unpruned    all     576     600      12.3       1.3      3.00       100        100",
        "fastv      0.25     144     217       6.1         -      1.50        62         50",
        "fastervlm    64  ValueError: no [CLS]",
    ]
    gpu = Row("unpruned", None, peak_bytes=2_000_000)
    assert table([gpu]).split() == ["method", "keep", "peak", "MB", "unpruned", "all", "2"]


# -------------------------------------------------------------------------- pictures and questions
def test_pictures_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match="no picture"):
        pictures(tmp_path)
    for name in ("b.PNG", "a.jpg"):
        Image.new("RGB", (30, 20), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    found = pictures(tmp_path)
    assert list(found) == ["a.jpg", "b.PNG"] and found["a.jpg"].size == (30, 20)


def test_the_packages_own_photographs():
    own = photographs()
    found = pictures()
    assert list(found) == list(own) and len(found) > 10
    _, height, width = own["cat"].shape
    assert found["cat"].size == (width, height)
    seen = torch.tensor(list(found["cat"].tobytes())).view(height, width, 3).permute(2, 0, 1)
    assert (seen / 255 - own["cat"]).abs().max() < 0.005


def test_questions(tmp_path):
    assert questions(None, ["a"]) == [("a", question) for question in QUESTIONS]
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "Where?"}\n\n{"question": "Who?", "picture": "b"}\n')
    assert questions(file, ["a", "b"]) == [("a", "Where?"), ("b", "Where?"), ("b", "Who?")]
    with pytest.raises(ValueError, match="no picture 'b'"):
        questions(file, ["a"])
    for wrong in ("Where?", '{"picture": "a"}', '["Where?"]'):
        file.write_text(f'{{"question": "Who?"}}\n{wrong}\n')
        with pytest.raises(ValueError, match="questions.jsonl, line 2"):
            questions(file, ["a"])


# ------------------------------------------------------------------------------------ the command
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLaVA with its processor, as save_pretrained leaves them."""
    words = ["<pad>", "<s>", "<unk>", "what", "is", "in", "the", "picture?", "USER:", "ASSISTANT:"]
    words += [f"w{i}" for i in range(len(words), IMAGE)] + ["<image>"]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    pixels = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(pixels, tokenizer, patch_size=14, num_additional_image_tokens=1,
                               vision_feature_select_strategy="default", image_token="<image>")
    where = tmp_path_factory.mktemp("llava")
    make_llava().save_pretrained(where)
    processor.save_pretrained(where)
    return where


@pytest.fixture
def templated(folder):
    file = folder / "chat_template.jinja"
    file.write_text(TEMPLATE)
    yield folder
    file.unlink()


def command(folder, tmp_path, *more):
    shown = tmp_path / "pictures"
    shown.mkdir(exist_ok=True)
    for i, name in enumerate(("cat", "fig")):
        colours = (photographs(56, [name])[name] * 255).byte().permute(1, 2, 0).contiguous()
        Image.frombytes("RGB", (56, 56), bytes(colours.flatten().tolist())).save(
            shown / f"{i}_{name}.png")
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "what is in the picture?"}\n')
    out = tmp_path / "rows.json"
    code = main([str(folder), "--keep", "4", "0.5", "--pictures", str(shown), "--questions",
                 str(asked), "--json", str(out), "--tokens", "3", "--repeats", "1", *more])
    return code, json.loads(out.read_text())


def test_command(folder, tmp_path, capsys):
    methods = ("divprune", "fastv", "hiprune")
    code, kept = command(folder, tmp_path, "--methods", *methods, "--device", "cpu")
    assert code == 0 and (kept["type"], kept["prompts"], kept["dtype"]) == ("llava", 2, "float32")
    rows = {(row["method"], row["keep"]): row for row in kept["rows"]}
    assert len(rows) == 1 + 2 * len(methods)
    assert rows["divprune", 4]["visual_tokens"] == 4
    # USER: <image> what is in the picture? ASSISTANT:
    assert rows["unpruned", None]["prompt_tokens"] == 7 + N
    assert "object_layer" in rows["hiprune", 4]["reason"]  # ask four layers for the ninth
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"model {folder}, type llava, device cpu")
    assert shown[1:] == table([Row(**row) for row in kept["rows"]]).splitlines()


def test_command_with_a_chat_template(templated, tmp_path):
    _, kept = command(templated, tmp_path, "--methods", "pool", "--dtype", "bfloat16")
    assert kept["dtype"] == "bfloat16"
    rows = {(row["method"], row["keep"]): row for row in kept["rows"]}
    assert rows["unpruned", None]["prompt_tokens"] == 5 + N
    assert rows["pool", 0.5]["visual_tokens"] == N // 2
    half = 2 * L * (5 + N) * TOKEN_BYTES / 4
    assert rows["unpruned", None]["cache_bytes"] == half


def test_command_with_options(folder, tmp_path):
    asked = ("--methods", "hiprune", "--option", "object_layer=2", "positions=keep")
    _, kept = command(folder, tmp_path, *asked)
    assert kept["options"] == {"object_layer": 2, "positions": "keep"}
    assert all(row["reason"] is None for row in kept["rows"])


def test_command_on_the_packages_photographs(folder, capsys):
    main([str(folder), "--methods", "divprune", "--limit", "4", "--tokens", "2", "--repeats", "1"])
    assert "prompts 4," in capsys.readouterr().out


def test_command_with_a_device_map(folder, tmp_path):
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    _, kept = command(folder, tmp_path, "--methods", "divprune", "--device-map", "auto")
    assert all(row["reason"] is None for row in kept["rows"])


@pytest.mark.skipif(is_torchvision_available(), reason="for environments without torchvision")
def test_a_processor_that_needs_torchvision_says_so(qwen, tmp_path):
    qwen.save_pretrained(tmp_path)
    Qwen2VLImageProcessor().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"processor_class": "Qwen2_5_VLProcessor", "image_processor_type":
                    "Qwen2VLImageProcessor"}))
    with pytest.raises(ValueError, match="without torchvision"):
        load(str(tmp_path), "cpu")


def test_command_says_what_is_wrong(folder, tmp_path, capsys):
    for wrong, told in (
        (["--methods", "divprun"], "is not known"),
        (["--keep", "few"], "invalid budget value: 'few'"),
        (["--option", "keep"], "invalid option value: 'keep'"),
        (["--pictures", str(tmp_path)], "there is no picture"),
        (["--repeats", "0"], "repeats=0"),
    ):
        with pytest.raises(SystemExit) as error:
            main([str(folder), "--limit", "1", *wrong])
        assert error.value.code == 2 and told in capsys.readouterr().err
