"""The rules of the house, read off the source: who may import whom, and what library code never does."""

import ast

import pytest

from tools.notebook import ROOT

VTLIB = ROOT / "vtlib"
FILES = sorted(VTLIB.rglob("*.py"))
VOCABULARY = {"nn", "tokens", "quantize", "checkpoints"}  # used by all, use nothing of the course
SHARED = VOCABULARY | {"vit", "data", "vlm"}  # what a paper's file may use besides its own
COURSE_ONLY = {
    "matplotlib",
    "ipywidgets",
    "IPython",
    "skimage",
    "sklearn",
    "torchmetrics",
    "tokenizers",
    "tqdm",
    "PIL",
    "scipy",
}
# files of a family that hold no paper
NO_PAPER = (
    "__init__.py", "common.py", "registry.py", "method.py", "bench.py", "pretrained.py",
    "probes.py", "pyramid.py", "warp.py", "degrade.py", "quality.py", "cross_attention.py",
)
BUILDS_ON = {("pruning.crossget_encoder", "pruning.crossget"), ("superres.ttvsr", "superres.spynet")}  # (paper, paper): where the paper itself builds on the other


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """Absolute names of everything a file imports, at any depth of its code."""
    package = module(path) if path.name == "__init__.py" else module(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1] + ([base] if base else []))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def family(name):
    """The sub-package of vtlib that a dotted name belongs to."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.fixture(params=FILES, ids=module)
def path(request):
    return request.param


def test_course_packages_stay_in_teach(path):
    if family(module(path)) == "teach":
        return
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & COURSE_ONLY
    if family(module(path)) != "hub":
        assert "transformers" not in tops
    assert "vtlib.teach" not in {".".join(name.split(".")[:2]) for name in imports(path)}


def test_arrows_point_one_way(path):
    own = family(module(path))
    used = {family(name) for name in imports(path) if name.startswith("vtlib")} - {""}
    if own in VOCABULARY:
        assert used <= VOCABULARY
    elif own in SHARED:
        assert used <= SHARED
    elif own not in ("teach", "hub", ""):
        assert used <= SHARED | {own}


def test_no_paper_imports_another(path):
    name = module(path)
    own = family(name)
    if own in SHARED | {"teach", "hub", ""} or path.name in NO_PAPER:
        return
    papers = {module(p) for p in (VTLIB / own).glob("*.py") if p.name not in NO_PAPER} - {name}
    used = {paper for paper in papers for got in imports(path) if got == paper or got.startswith(paper + ".")}
    assert not {(name.removeprefix("vtlib."), u.removeprefix("vtlib.")) for u in used} - BUILDS_ON


def test_library_habits(path):
    own = family(module(path))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{module(path)}, line {getattr(node, 'lineno', '?')}"
        assert not isinstance(node, ast.Assert), f"{where}: an assert is no way to talk to a user, raise ValueError"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            assert name != "cuda", f"{where}: .cuda(), device follows the input"
            if own not in ("teach", "data"):  # one compares and draws on the CPU, the other draws random numbers there
                assert name != "cpu", f"{where}: .cpu(), device follows the input"
            if name == "load" and ast.unparse(node.func.value) == "torch":
                safe = [k for k in node.keywords if k.arg == "weights_only" and getattr(k.value, "value", None) is True]
                assert safe, f"{where}: torch.load without weights_only=True"
            assert ast.unparse(node.func) not in ("pickle.load", "pickle.loads", "torch.manual_seed") or own == "teach", where


def test_public_modules_say_what_they_are(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if tree.body:
        assert ast.get_docstring(tree), f"{module(path)}: no docstring"
    own = family(module(path))
    if own not in SHARED | {"teach", "hub", ""} and path.name not in NO_PAPER:
        assert "arXiv" in ast.get_docstring(tree), f"{module(path)}: the paper's docstring gives its arXiv id"


def test_the_rules_see_something():
    assert len(FILES) > 15 and {"vtlib.nn.attention"} <= {module(p) for p in FILES}
    assert any(name.startswith("vtlib.nn") for p in FILES for name in imports(p))
