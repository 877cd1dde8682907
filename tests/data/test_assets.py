"""The shipped files: complete, small, licensed, as data/README.md says; and read without the
packages that built them."""

import hashlib
import importlib.util
import json
import lzma
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from vtlib import data
from vtlib.data import assets, pictograms

ROOT = assets.root()
FILES = (
    *("emoji.npz", "emoji.json", "photos.npz", "photos.json"),
    *("clip.npz", "shots.npz", "digits.npz", "font.npz"),
)


def readme_rows():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return {
        m[1]: (int(m[2].replace(",", "")), m[3])
        for m in re.finditer(r"^\| `([\w.]+)` \| ([\d,]+) \| `([0-9a-f]{64})`", text, re.M)
    }


@pytest.mark.parametrize("file", FILES)
def test_readme_states_size_and_hash(file):
    content = (ROOT / file).read_bytes()
    assert readme_rows()[file] == (len(content), hashlib.sha256(content).hexdigest())


def test_every_asset_is_in_the_readme_and_all_are_small():
    real = ROOT / "real"  # what `make real` wrote is no asset
    found = [p for p in ROOT.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    found = [p for p in found if real not in p.parents]
    tables = [p for p in found if p.parent == ROOT and p.suffix == ".json"]
    assert {p.name for p in [*tables, *ROOT.rglob("*.npz")]} == set(FILES)
    assert set(FILES) <= set(readme_rows())
    checkpoints = [p for p in found if p.suffix == ".safetensors"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(p.stat().st_size < 10e6 and f"`{p.stem}`" in text for p in checkpoints)
    pictures = sum(p.stat().st_size for p in found if p not in checkpoints) / 2**20
    weights = sum(p.stat().st_size for p in checkpoints) / 2**20
    print(f"pictures, fonts and texts: {pictures:.1f} MiB, checkpoints: {weights:.1f} MiB")
    assert pictures < 14


def test_licences_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\(LICENSES/([\w.-]+)\)", text))
    assert linked == {p.name for p in (ROOT / "LICENSES").iterdir()}
    assert "Apache License" in (ROOT / "LICENSES/Apache-2.0.txt").read_text()
    assert (ROOT / "LICENSES/CC-BY-4.0.txt").read_text().startswith("Attribution 4.0 International")
    for row in assets.photo_table():
        assert row["author"] in text and row["file"] in text
        assert row["licence"] in ("CC0-1.0", "CC-BY-4.0", "CC-BY-2.0", "public domain")


def test_no_pickles():
    for file in FILES:
        if file.endswith(".npz"):
            with np.load(ROOT / file, allow_pickle=False) as archive:
                assert all(archive[k].dtype != object for k in archive.files)


def test_table_of_pictograms():
    rows = pictograms.table()
    assert len(rows) == 1911
    assert all(len({r[key] for r in rows}) == 1911 for key in ("name", "code"))
    assert len(data.categories()) == 9 and len(data.subcategories()) == 99
    assert {r["category"] for r in rows} == set(data.categories())
    assert all(rows[r["twin"]]["split"] == r["split"] for r in rows)
    assert all(r["twin"] <= i for i, r in enumerate(rows))
    for r in rows:
        assert "-".join(f"{ord(c):04X}" for c in r["char"]) == r["code"]
    share = sum(r["split"] == "test" for r in rows) / len(rows)
    assert 0.17 < share < 0.23
    for category in data.categories():  # both splits have some of everything
        assert {r["split"] for r in rows if r["category"] == category} == {"train", "test"}


def test_drawings():
    for artist in assets.ARTISTS:
        rgba = assets.drawings(artist)
        assert rgba.shape == (1911, 64, 64, 4) and rgba.dtype == torch.uint8
        assert (rgba[..., 3].flatten(1).amax(1) > 200).all()
        assert (rgba[..., :3][rgba[..., 3] == 0] == 0).all()
    with pytest.raises(ValueError, match="artist='apple'.*noto, twemoji"):
        assets.drawings("apple")


def test_twins_look_the_same_and_others_do_not():
    twin = pictograms.twins()
    pair = (data.pictogram("Norway flag"), data.pictogram("Svalbard & Jan Mayen flag"))
    assert twin[pair[0]] == twin[pair[1]]
    easy = [data.pictogram(n) for n in data.EASY]
    assert len(set(twin[easy].tolist())) == len(data.EASY) == 12
    for name in assets.ARTISTS:
        rgba = assets.drawings(name)[easy].float() / 255
        rgb = (rgba[..., :3] * rgba[..., 3:]).flatten(1)
        assert torch.cdist(rgb, rgb).add(torch.eye(12) * 99).min() > 15


def test_pictogram_by_name():
    i = data.pictogram("red apple")
    assert i == data.pictogram("Red Apple ") == data.pictogram("\U0001f34e")
    assert pictograms.name_of(i) == "red apple"
    with pytest.raises(ValueError, match="'red aple' is not among the 1,911.*close: .*red apple"):
        data.pictogram("red aple")
    with pytest.raises(ValueError, match="not among"):
        data.pictogram("")


def test_photographs():
    photos = data.photographs()
    assert len(photos) >= 16
    for image in photos.values():
        assert image.dtype == torch.float32 and image.shape[0] == 3 and max(image.shape) <= 512
        assert 0 <= image.min() and image.max() <= 1 and image.std() > 0.05
    some = data.photographs(size=(50, 81), names=["cat", "coffee"])
    assert list(some) == ["cat", "coffee"] and all(x.shape == (3, 50, 81) for x in some.values())
    photos["cat"].zero_()  # what one reader does to a picture, the next doesn't see
    assert data.photographs(names=["cat"])["cat"].sum() > 0
    with pytest.raises(ValueError, match="names has 'lena'"):
        data.photographs(names=["lena"])
    with pytest.raises(ValueError, match="size=0"):
        data.photographs(size=0)


def test_background_splits():
    names = {"train": set(), "test": set(), "none": set()}
    for row in assets.photo_table():
        names[row["split"]].add(row["name"])
    assert len(names["train"]) >= 8 and len(names["test"]) >= 4
    assert {"astronaut", "cat", "dogs", "admiral"} == names["none"]


def test_photographs_match_their_source():
    pytest.importorskip("skimage")
    from skimage import data as source

    ours = data.photographs(names=["astronaut"])["astronaut"].permute(1, 2, 0).numpy()
    theirs = source.astronaut() / 255
    assert ours.shape == theirs.shape
    error = np.square(ours - theirs).mean()
    assert 10 * np.log10(1 / error) > 33  # only the chroma lost resolution
    grey = np.array([0.299, 0.587, 0.114])
    assert np.abs((ours - theirs) @ grey).mean() < 0.006


def test_digits():
    images, labels = data.digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert labels.dtype == torch.long
    assert (
        images.min() == 0
        and images.max() == 1
        and labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    )
    sklearn = pytest.importorskip("sklearn.datasets")
    source = sklearn.load_digits()
    assert np.array_equal(images[:, 0].numpy() * 16, source.images)
    assert np.array_equal(labels.numpy(), source.target)


def test_clip():
    frames, fps = data.clip()
    assert frames.shape == (48, 3, 108, 192) and frames.dtype == torch.float32 and fps == 12.5
    assert 0 <= frames.min() and frames.max() <= 1
    step = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    assert (step > 1e-4).all() and step.max() < 0.1  # it moves, and there is no cut in it


def test_shots_are_two_and_the_same_video_as_the_clip():
    first, second, fps = data.shots()
    assert first.shape == (32, 3, 192, 256) and second.shape == (24, 3, 192, 256)
    assert first.dtype == torch.float32 and fps == 25
    assert 0 <= min(first.min(), second.min()) and max(first.max(), second.max()) <= 1
    for shot in (first, second):
        assert (shot[1:] - shot[:-1]).abs().mean((1, 2, 3)).max() < 0.1  # no cut inside
    assert (second[0] - first[-1]).abs().mean() > 0.2
    resize = torch.nn.functional.interpolate                      # to 51 x 68 of the middle
    small = resize(first[::2], scale_factor=192 / 720, mode="bicubic", antialias=True)
    clip = data.clip()[0][:16, :, 28:79, 62:130]
    assert (small[..., 4:-4, 4:-4] - clip[..., 4:-4, 4:-4]).abs().mean() < 0.06


def test_checkpoint():
    with pytest.raises(ValueError, match="name='nothing'"):
        data.checkpoint("nothing")


def test_imports_only_torch_and_numpy():
    others = ("skimage", "PIL", "matplotlib", "sklearn", "IPython", "transformers", "scipy")
    code = (
        "import sys, vtlib.data as d; w = d.EmojiWorld(32, pictograms=list(d.EASY)); "
        "w.classify(2, 0); d.photographs(8); d.clip(); d.digits(); "
        f"bad = [m for m in {others} if m in sys.modules]; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not (ROOT / "pack.py").exists(), reason="an installed wheel has no builders")
class TestBuilders:
    def test_packing_is_deterministic_and_undone(self, tmp_path):
        pack = load("pack")
        rgb = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)
        rgb = np.repeat(np.repeat(rgb, 2, 1), 2, 2)  # constant in 2 x 2: the chroma loses nothing
        planes = pack.to_planes(rgb)
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            pack.save_npz(tmp_path / folder / "x.npz", **planes)
        assert (tmp_path / "a/x.npz").read_bytes() == (tmp_path / "b/x.npz").read_bytes()
        luma = np.cumsum(planes["y"], axis=-1, dtype=np.uint8)
        assert np.abs(luma - rgb @ np.array([0.299, 0.587, 0.114])).max() <= 0.51
        flat = np.full((1, 8, 8, 3), (200, 30, 90), np.uint8)
        back = assets.from_planes(**pack.to_planes(flat))
        assert (back * 255 - torch.tensor([200.0, 30, 90]).view(1, 3, 1, 1)).abs().max() < 1.5

    def test_streams_can_be_read_alone(self, tmp_path):
        pack = load("pack")
        items = np.random.default_rng(0).integers(0, 9, (10, 5, 3), np.uint8)
        streams, start = pack.in_blocks(items, 4)
        pack.save_npz(tmp_path / "x.npz", stored=("s",), s=streams, start=start)
        content = (tmp_path / "x.npz").read_bytes()
        assert len(start) == 4 and streams.tobytes() in content
        last = lzma.decompress(streams[start[2] :].tobytes())
        assert np.array_equal(np.frombuffer(last, np.uint8).reshape(-1, 5, 3), items[8:])

    @pytest.mark.parametrize("name, needs", [("digits", "sklearn"), ("font", "matplotlib")])
    def test_rebuilding_gives_the_same_content(self, name, needs, tmp_path):
        pytest.importorskip(needs)
        pytest.importorskip("PIL")
        script = ROOT / f"build_{name}.py"
        command = [sys.executable, str(script), "--out", str(tmp_path)]
        subprocess.run(command, check=True, capture_output=True)
        ours, again = (dict(np.load(folder / f"{name}.npz")) for folder in (ROOT, tmp_path))
        assert list(ours) == list(again)
        for key in ours:
            if name == "digits":
                assert np.array_equal(ours[key], again[key])
            else:  # another FreeType may round differently
                assert ours[key].shape == again[key].shape
                assert np.abs(ours[key].astype(int) - again[key]).mean() < 2

    def test_json_is_one_row_a_line(self):
        for file in ("emoji.json", "photos.json"):
            lines = (ROOT / file).read_text().splitlines()
            assert len(json.loads("\n".join(lines))) == len(lines) - 2
