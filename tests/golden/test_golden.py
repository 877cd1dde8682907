"""Parity with official code: every shipped case passes, and the runner notices what is wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from .__main__ import HERE, main
from .runner import error_ratio, find_cases, run_case

CASES = find_cases(HERE)


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_case(path):
    result = run_case(path)
    assert result.status == "ok", str(result)
    assert "not compared" not in result.detail, str(result)


def test_the_three_papers_are_there():
    assert {p.parent.name for p in CASES} >= {"crossvit", "crossformer", "tokenformer"}


def test_all_cases_end_with_zero(capsys):
    assert main([str(HERE)]) == 0
    assert f"{len(CASES)} passed, 0 failed" in capsys.readouterr().out


def test_runner_notices(tmp_path, capsys):
    source = next(p for p in CASES if p.stem == "pattention_base")
    for suffix in (".json", ".safetensors"):
        shutil.copy(source.with_suffix(suffix), tmp_path / f"bent{suffix}")
    tensors = load_file(source.with_suffix(".safetensors"))
    tensors["out_l2_norm_gelu"] = tensors["out_l2_norm_gelu"] + 1e-3
    save_file(tensors, tmp_path / "bent.safetensors")
    assert main([str(tmp_path)]) == 1
    assert "FAILED" in capsys.readouterr().out

    info = json.loads(source.read_text()) | {"function": "nobody wrote this"}
    (tmp_path / "bent.json").write_text(json.dumps(info))
    assert main([str(tmp_path)]) == 1
    assert "no adapter" in capsys.readouterr().out
    assert main([str(tmp_path), "--known"]) == 1                     # nothing ran: that is no pass
    assert main([str(tmp_path / "empty")]) == 2


@pytest.mark.parametrize("got, want, ok", [
    (torch.tensor([1, 2]), torch.tensor([1, 2]), True),
    (torch.tensor([1, 3]), torch.tensor([1, 2]), False),
    (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0]), False),
    (torch.tensor([1.0]), torch.tensor([1.0, 2.0]), False),
    (torch.tensor([1.0 + 1e-6]), torch.tensor([1.0]), True),
])
def test_error_ratio(got, want, ok):
    assert (error_ratio(got, want, 1e-5, 0)[0] <= 1) == ok
