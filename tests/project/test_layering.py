"""The rules of the house, read off the source: who may import whom, what it never does."""

import ast

import pytest

from tools.notebook import ROOT

VTLIB = ROOT / "vtlib"
FILES = sorted(VTLIB.rglob("*.py"))
VOCABULARY = {"nn", "tokens", "quantize", "checkpoints"}  # used by all, use nothing of the course
SHARED = VOCABULARY | {"vit", "data", "vlm"}  # what a family may use besides its own
FOR_PAPERS = VOCABULARY | {"vit"}  # what a paper's file may use
# files of a family that the papers of another may use
SHARED_FILES = {
    "vtlib.generation.autoregressive",
    "vtlib.generation.diffusion",
    "vtlib.generation.sampling",
    "vtlib.superres.quality",
    "vtlib.superres.spynet",
    "vtlib.vlm.decoder",
}
NO_FAMILY = {"teach", "hub", "_lazy", ""}
COURSE_ONLY = {
    "matplotlib",
    "ipywidgets",
    "IPython",
    "skimage",
    "sklearn",
    "torchmetrics",
    "pycocotools",
    "tokenizers",
    "tqdm",
    "PIL",
    "scipy",
}
# (paper, paper): where the paper itself builds on the other
BUILDS_ON: set[tuple[str, str]] = {("tokenizers.retok", "tokenizers.gigatok")}


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
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1] + ([base] if base else [])
                base = ".".join(parts)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def family(name):
    """The sub-package of vtlib that a dotted name belongs to."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def declares_paper(path):
    """Whether a module says PAPER = "slug": then it holds a paper."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    return "PAPER" in {ast.unparse(target) for target in targets}


PAPERS = {module(path) for path in FILES if declares_paper(path)}


def belongs(name, modules):
    """The modules that a dotted name is, or is an attribute of."""
    return {m for m in modules if name == m or name.startswith(m + ".")}


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
    name, own = module(path), family(module(path))
    names = [n for n in imports(path) if n.startswith("vtlib") and not belongs(n, SHARED_FILES)]
    used = {family(n) for n in names} - {"", "_lazy"}
    if own in VOCABULARY:
        assert used <= VOCABULARY
    elif name in PAPERS:
        assert used <= FOR_PAPERS | {own}
    elif own in SHARED:
        assert used <= SHARED
    elif own not in NO_FAMILY:
        assert used <= SHARED | {own}


def test_no_paper_imports_another(path):
    name = module(path)
    if name not in PAPERS:
        return
    used = {paper for got in imports(path) for paper in belongs(got, PAPERS - {name})}
    pairs = {(name.removeprefix("vtlib."), paper.removeprefix("vtlib.")) for paper in used}
    assert not pairs - BUILDS_ON


def test_library_habits(path):
    own = family(module(path))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{module(path)}, line {getattr(node, 'lineno', '?')}"
        told = f"{where}: an assert is no way to talk to a user, raise ValueError"
        assert not isinstance(node, ast.Assert), told
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            assert name != "cuda", f"{where}: .cuda(), device follows the input"
            # one compares and draws on the CPU, the other draws random numbers there
            if own not in ("teach", "data"):
                assert name != "cpu", f"{where}: .cpu(), device follows the input"
            if name == "load" and ast.unparse(node.func.value) == "torch":
                safe = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                told = f"{where}: torch.load without weights_only=True"
                assert safe.get("weights_only") is True, told
            never = ("pickle.load", "pickle.loads", "torch.manual_seed")
            assert ast.unparse(node.func) not in never or own == "teach", where


def test_public_modules_say_what_they_are(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if tree.body:
        assert ast.get_docstring(tree), f"{module(path)}: no docstring"
    if module(path) in PAPERS:
        told = f"{module(path)}: the paper's docstring gives its arXiv id"
        assert "arXiv" in ast.get_docstring(tree), told


def test_the_rules_see_something():
    assert len(FILES) > 15 and {"vtlib.nn.attention"} <= {module(p) for p in FILES}
    assert any(name.startswith("vtlib.nn") for p in FILES for name in imports(p))
    assert {"vtlib.pruning.divprune", "vtlib.multiscale.crossvit", "vtlib.superres.ttvsr"} <= PAPERS
    assert belongs("vtlib.superres.spynet.SPyNet", SHARED_FILES)
    assert not belongs("vtlib.superres.spynets", SHARED_FILES)
