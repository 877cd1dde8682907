"""The training scripts run from their first step to a checkpoint that the loader takes."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.fresh import fresh
from tests.hub.tiny import make_dinov2
from tests.test_checkpoints import build
from vtlib import checkpoints, hub
from vtlib.hub import dino
from vtlib.tokenizers import HAR, MaskedGenerator, ResTok, TokenBridge, small

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("--steps", "20")
RUNS = {
    "vit": [("vit.py", *STEPS)],
    "multiscale": [("multiscale.py", "crossvit", *STEPS)],
    "tokenformer": [("tokenformer.py", *STEPS)],
    "ett": [("ett.py", *STEPS)],
    "crossget": [("crossget.py", *STEPS)],
    "diffusion": [("diffusion.py", *STEPS)],
    "image_text": [("image_text.py", *STEPS)],
    "camouflage": [("camouflage.py", kind, *STEPS) for kind in ("full", "vit", "pixels")],
    "caswit": [("caswit.py", kind, *STEPS) for kind in ("stages", "crop", "pretraining")],
    "catanet": [("catanet.py", *STEPS), ("catanet.py", "--local", "--seed", "1", *STEPS)],
    "spynet": [("spynet.py", *STEPS), ("spynet.py", "--refine", *STEPS)],
    "uplift": [("uplift.py", *STEPS)],
    "visual_tokenizers": [("visual_tokenizers.py", "vq", *STEPS)],
    "ttvsr": [("ttvsr.py", "ttvsr", "--flow", flow, *STEPS) for flow in ("true", "net")],
    "tokenbridge": [("tokenbridge.py", *STEPS)],
    "vwformer": [("vwformer.py", what, *STEPS) for what in ("vw", "zeros", "cues")],
    "oneformer": [("oneformer.py", *STEPS), ("oneformer.py", "--rival", "single", *STEPS)],
    "restok": [("restok.py", *STEPS)],
    "split_matching": [
        ("split_matching.py", kind, *STEPS) for kind in ("scenes", "pictures")
    ],
    "segmenter": [("segmenter.py", *STEPS)],
    "tinyvlm": [("tinyvlm.py", step, *STEPS) for step in ("see", "read", "all", "few", "ship")],
    "tinyvlm_dino": [
        ("tinyvlm_dino.py", step, *STEPS) for step in ("features", "align", "read", "ship")
    ],
}
NEEDS = {  # checkpoints they read
    "camouflage": "diffusion_camouflage", "restok": "tokenizer_restok",
    "tokenbridge": "tokenizer_kl",
}
WORKS = ("ttvsr.py", "tinyvlm.py", "tinyvlm_dino.py")  # what takes --work


def train(folder, script, *words):
    """One script in a process of its own; what it prints."""
    work = ("--work", str(folder / "work")) if script in WORKS else ()
    command = [sys.executable, f"train/{script}", *words, "--out", str(folder), *work]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "train"))
    yield importlib.import_module("common")
    for name in ("common", "tinyvlm", "tinyvlm_dino", "tokenbridge", "restok"):
        sys.modules.pop(name, None)


def test_every_script_has_a_run():
    scripts = {p.stem for p in (ROOT / "train").glob("*.py")} - {"common"}
    assert scripts == set(RUNS)


def test_every_script_finds_what_it_imports():
    code = f"import sys; sys.path.insert(0, 'train'); import {', '.join(RUNS)}"
    fresh(code, cwd=ROOT)


@pytest.mark.nightly
@pytest.mark.parametrize("name", RUNS)
def test_twenty_steps(name, tmp_path):
    if name == "tinyvlm_dino" and hub.real_missing("dinov2"):
        pytest.skip(hub.real_missing("dinov2"))
    if name in NEEDS and NEEDS[name] not in checkpoints.names():
        pytest.skip(f"{NEEDS[name]} is not shipped yet")
    printed = [train(tmp_path, *run) for run in RUNS[name]]
    assert all("seed 0" in text or "step 20/20" in text for text in printed)
    written = sorted(tmp_path.glob("*.safetensors"))
    assert written and {p.stem for p in written} <= set(checkpoints.names())
    for path in written:
        shipped, header = checkpoints.info(path.stem), checkpoints.info(path)
        assert header["config"] == shipped["config"] and header["seed"] == 0
        assert header.keys() >= shipped.keys() and header["score"].keys() == shipped["score"].keys()
        assert "NaN" not in json.dumps(header["score"])
        assert (ROOT / header["command"].split()[2]).is_file()
        checkpoints.load(path, build(path.stem))


@pytest.mark.nightly
def test_two_steps_of_tinyvlm_dino(common, tmp_path, monkeypatch):
    """Behind a DINOv2 of random weights: what the steps leave each other, and what is shipped."""
    script, backbone = importlib.import_module("tinyvlm_dino"), make_dinov2(384)
    monkeypatch.setattr(script.hub, "real", lambda name, device=None: backbone)
    given = ["--steps", "2", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    for step in ("features", "align", "read", "ship"):
        script.main([step, *given])
    assert len(list((tmp_path / "work" / "features").iterdir())) == 2
    path = tmp_path / "tinyvlm_dino.safetensors"
    header, model = checkpoints.info(path), checkpoints.load(path, dino.reader)
    assert {"held out", "blind", "other artist", "pruned"} == header["score"].keys()
    assert path.stat().st_size < 3e6 and model.encoder.backbone is None
    with pytest.raises(FileNotFoundError, match="run the step `features`"):
        script.main(["align", "--steps", "2", "--out", str(tmp_path), "--work", str(tmp_path)])


def test_two_steps_of_the_fastest(tmp_path):
    assert "step 2/2: loss" in train(tmp_path, "tokenformer.py", "--steps", "2")
    path = tmp_path / "tokenformer_chars.safetensors"
    header, shipped = checkpoints.info(path), checkpoints.info("tokenformer_chars")
    assert header.keys() >= shipped.keys() and header["config"] == shipped["config"]
    assert header["command"].endswith("train/tokenformer.py --seed 0 --steps 2")
    assert 3 < header["score"]["nats a character"] < 4


def test_two_steps_of_tokenbridge(common, tmp_path, capsys):
    """On an autoencoder of random weights: the serial head's weights, the parallel one's scores."""
    config = dict(net="cnn", bottleneck="kl", dim=3)
    given = dict(config=config, command="none", seed=0)
    (tmp_path / "kl").mkdir()
    common.ship(tmp_path / "kl", "kl", small(**config), lambda: {}, **given)
    words = ["--autoencoder", str(tmp_path / "kl" / "kl.safetensors"), "--out", str(tmp_path)]
    importlib.import_module("tokenbridge").main(["--steps", "2", *words])
    assert capsys.readouterr().out.count("step 2/2: loss") == 2
    path = tmp_path / "tokenbridge_emoji.safetensors"
    header, model = checkpoints.info(path), checkpoints.load(path, MaskedGenerator)
    parallel = json.loads((tmp_path / "tokenbridge_emoji_parallel_seeds.json").read_text())["0"]
    assert header["score"].keys() == parallel["score"].keys()
    assert header["score"]["marginal entropy"] == parallel["score"]["marginal entropy"]
    assert all(0 < value < 9 for value in header["score"].values())
    tokenizer = TokenBridge(small(**config), **header["tokenizer"])
    assert len(header["classes"]) == model.num_classes == 9
    assert tokenizer.decode_indices(model.sample(batch=1, steps=4)).shape == (1, 3, 64, 64)


def test_two_steps_of_restok(common, tmp_path, capsys):
    """On a tokenizer of random weights: HAR's weights, the serial generator's scores."""
    config = dict(
        image_size=64, channels=8, multipliers=[1, 1], num_res_blocks=1, groups=4, patch_size=4,
        map_channels=6, embed_dim=16, num_layers=3, num_heads=2, num_latents=16, stages=3,
        code_dim=4, codebook_size=32, teacher_dim=None,
    )
    (tmp_path / "tokens").mkdir()
    given = dict(config=config, command="none", seed=0)
    common.ship(tmp_path / "tokens", "tokens", ResTok(**config), lambda: {}, **given)
    words = ["--tokenizer", str(tmp_path / "tokens" / "tokens.safetensors"), "--out", str(tmp_path)]
    importlib.import_module("restok").main(["--steps", "2", *words])
    assert capsys.readouterr().out.count("step 2/2: loss") == 2
    path = tmp_path / "restok_emoji.safetensors"
    score, model = checkpoints.info(path)["score"], checkpoints.load(path, HAR)
    serial = json.loads((tmp_path / "restok_emoji_serial_seeds.json").read_text())["0"]["score"]
    assert score["marginal entropy"] == serial["marginal entropy"]
    assert (score["passes"], serial["passes"], len(score["by level"])) == (6, 16, 5)
    assert score["gap"] == pytest.approx(score["by level"][-1] - serial["by level"][-1], abs=1e-3)
    assert len(checkpoints.info(path)["classes"]) == model.num_classes == 9


@pytest.mark.parametrize(
    ("words", "batch", "scored"),
    [
        ("", 8, {}),
        ("--steps 50", 8, {}),
        ("--steps 49", 2, {"pictures": 4}),
        ("--steps 20 --batch 3", 3, {"pictures": 4}),
    ],
)
def test_a_smoke_run_is_small(common, tmp_path, words, batch, scored):
    parser = common.options("text", 600)
    parser.add_argument("--batch", type=int, default=8)
    given = [*words.split(), "--out", str(tmp_path)]
    args = common.begin(parser, given, batch=2, scored=dict(pictures=4))
    assert (args.batch, args.scored) == (batch, scored)


def test_a_smoke_run_keeps_off_the_shipped_files(common, capsys):
    with pytest.raises(SystemExit):
        common.begin(common.options("text", 600), ["--steps", "20"])
    assert "--out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="bacth"):
        common.begin(common.options("text", 600), ["--steps", "600"], bacth=2)


def test_fit_follows_rate_scale_and_clipping(common):
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "scale": 0.5}]
    optimizer = torch.optim.SGD(groups, 1.0)

    def loss(factor):
        return factor * (weights[0].sum() + weights[1].sum())

    fitted = common.fit(
        lambda step: 10.0,
        loss,
        optimizer,
        range(3, 5),
        lambda step: float(step),
        parts=[weights[:1], weights[1:]],
    )
    # each part's gradient is cut to length 1: 0.7071 an entry, at rates 3 and 4
    expected = -torch.full((2,), 7 * 0.5**0.5)
    assert torch.allclose(weights[0], expected, atol=1e-5)
    assert torch.allclose(weights[1], expected / 2, atol=1e-5)
    assert len(fitted.rows) == 2 and fitted.rows[0]["loss"] == 0


def test_cosine_rises_and_falls(common):
    rate = common.cosine(2.0, 100, warmup=10, floor=0.1)
    assert rate(0) == pytest.approx(0.2, rel=1e-3) and rate(50) == pytest.approx(1.1)
    assert max(map(rate, range(100))) < 2 and rate(99) == pytest.approx(0.2, rel=5e-3)


def test_ship_scores_what_is_stored(common, tmp_path):
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    given = dict(config=dict(in_features=3, out_features=2), command="mine", shared=dict(kind="L"))
    for seed in (0, 2, 1):
        common.ship(
            tmp_path, "mine", model, lambda: model.weight.mean().item(), seed=seed, steps=4 + seed,
            **given,
        )
        assert (tmp_path / "mine_seeds.json").exists() == (seed != 0)
    stored = checkpoints.load(tmp_path / "mine.safetensors", nn.Linear)
    assert torch.equal(stored.weight, before.half().float())
    header = checkpoints.info(tmp_path / "mine.safetensors")
    assert header["score"] == stored.weight.mean().item() and header["kind"] == "L"
    table = json.loads((tmp_path / "mine_seeds.json").read_text())
    assert list(table) == ["0", "1", "2"]
    for seed, row in table.items():
        score = header["score"]
        assert row == dict(command="mine", seed=int(seed), score=score, steps=4 + int(seed))
    common.ship(tmp_path, "mine", model, lambda: 7, seed=0, steps=9, **given)
    table = json.loads((tmp_path / "mine_seeds.json").read_text())
    assert table["0"]["score"] == 7 and table["0"]["steps"] == 9 and len(table) == 3
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["mine.safetensors"]


def test_ship_may_keep_the_scores_alone(common, tmp_path):
    given = dict(config={}, command="mine", seed=0, keep=False)
    common.ship(tmp_path, "mine", nn.Linear(3, 2), lambda: 5, **given)
    table = json.loads((tmp_path / "mine_seeds.json").read_text())
    assert table == {"0": dict(command="mine", seed=0, score=5)}
    assert [path.name for path in tmp_path.iterdir()] == ["mine_seeds.json"]


def test_the_table_of_tokenizers_is_that_of_the_script(common):
    script = importlib.import_module("visual_tokenizers")
    sys.modules.pop("visual_tokenizers")
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert script.table(common.CHECKPOINTS) in text, "python train/visual_tokenizers.py table"
