"""The check machinery, on exercises registered under "toy." for these tests only."""

import functools
import importlib
import sys
import types

import numpy as np
import pytest
import torch
from einops import EinopsError, rearrange
from torch import nn

from tests.settings import default_dtype
from vtlib import teach
from vtlib.teach import exercises
from vtlib.teach.errors import plain_words
from vtlib.teach.exercises import Wrong, check, expect, expect_error, untouched

X = torch.arange(24.0).view(2, 3, 4)


@pytest.fixture(autouse=True)
def registry():
    yield
    for name in [name for name in exercises._REGISTRY if name.startswith(("toy.", "other."))]:
        del exercises._REGISTRY[name]


@pytest.fixture
def double():
    def reference(x):
        return x * 2

    @check("toy.double", reference=reference)
    def _(fn):
        with untouched(X):
            got = fn(X)
        causes = {"three times, not twice": X * 3, "squared": lambda: X**2}
        expect(got, X * 2, what="doubled", mistakes=causes)

    return reference


def fails(fn, name="toy.double") -> str:
    with pytest.raises(Wrong) as caught:
        teach.exercise(name, fn)
    return str(caught.value)


def test_not_attempted_gives_the_reference(double, capsys):
    def stub(x):
        raise NotImplementedError

    assert teach.exercise("toy.double", stub) is double
    told = "not attempted yet - the reference takes its place, so the notebook runs on."
    assert capsys.readouterr().out == f"toy.double: {told}\n"


def test_right_gives_the_function_back(double, capsys):
    def mine(x):
        return x + x

    assert teach.exercise("toy.double", mine) is mine
    assert capsys.readouterr().out == "toy.double: correct.\n"


def test_wrong_is_an_assertion_error_of_the_package(double):
    assert issubclass(teach.Wrong, AssertionError) and teach.Wrong is Wrong
    message = fails(lambda x: x * 3)
    assert message.startswith("toy.double: doubled: the values are off in 23 of 24 places")
    assert "found:    [60, 63, 66, 69]  at [1, 2, 0:4]" in message
    assert "expected: [40, 42, 44, 46]" in message
    assert "largest difference at [1, 2, 3]: found 69, expected 46" in message
    assert message.endswith("likely cause: three times, not twice")


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda x: x**2, "likely cause: squared"),
        (lambda x: None, "returned None - is a `return` missing?"),
        (lambda x: (x * 2).numpy(), "found:    a numpy array of shape (2, 3, 4)"),
        (lambda x: [x * 2], "found:    a list of 1"),
        (lambda x: "tokens", "found:    a str"),
        (lambda x: (x * 2).transpose(1, 2), "the axes are there, in another order"),
        (lambda x: (x * 2)[None], "an axis of length 1 is too many or missing"),
        (lambda x: (x * 2).flatten(1), "grouped in another way"),
        (lambda x: (x * 2)[:, 0], "2 axes instead of 3"),
        (lambda x: (x * 2)[:, 1:], "axis 1: 2 instead of 3"),
        (lambda x: (x * 2).double(), "found:    torch.float64"),
        (lambda x: x * 2 / 0, "24 of 24 values are not finite (1 NaN)"),
        (lambda x: x * 5, "every value is 2.5 times the expected one"),
        (lambda x: -2 * x, "every value is -1 times the expected one"),
        (lambda x: x * 2 + 7, "every value is off by the same 7"),
        (lambda x: (x * 2).flip(2), "the right values, in another order"),
        (lambda x: x.mul_(2).clone().copy_(x / 1), "changed its input in place"),
        (lambda x: x @ x, "your function raised RuntimeError"),
        (lambda x, y: x, "TypeError"),
    ],
)
def test_what_a_wrong_answer_is_told(double, answer, said):
    original = X.clone()
    try:
        assert said in fails(answer)
    finally:
        X.copy_(original)


def test_an_error_of_the_learner_is_chained_and_placed(double):
    def mine(x):
        return x.view(5)  # the line that fails

    with pytest.raises(Wrong, match="your function raised RuntimeError") as caught:
        teach.exercise("toy.double", mine)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "return x.view(5)  # the line that fails" in str(caught.value)


def test_an_unusable_result_is_not_called_an_error_of_the_function():
    @check("toy.mean", reference=lambda x: x)
    def _(fn):
        expect(fn(X).mean(), X.mean())

    told = "what your function returned cannot be used here: AttributeError"
    assert told in fails(lambda x: None, "toy.mean")


def dictionary(x):
    both = nn.ModuleDict({"twofold": nn.Identity()})
    return both(x)


def whole_numbers(x):
    return x.long().softmax(-1)


def missing_method(x):
    class Part(nn.Module):
        pass

    return Part()(x)


@pytest.mark.parametrize(
    "answer, line, cause",
    [
        (dictionary, "return both(x)", "pick one by its name"),
        (whole_numbers, "return x.long().softmax(-1)", "the tensor holds Long"),
        (missing_method, "return Part()(x)", "no `forward` yet"),
    ],
)
def test_a_not_implemented_error_of_torch_is_no_stub(double, answer, line, cause):
    message = fails(answer)
    assert "your function raised NotImplementedError" in message
    assert line in message and cause in message


def test_a_stub_is_one_behind_a_decorator_in_a_helper_and_in_an_inner_function(double, capsys):
    def helper(x):
        raise NotImplementedError

    def calls_a_helper(x):
        return helper(x)

    def inner(x):
        return [(lambda y: helper(y))(part) for part in x]

    for stub in (calls_a_helper, inner, torch.no_grad()(helper), functools.partial(helper)):
        assert teach.exercise("toy.double", stub) is double
    assert capsys.readouterr().out.count("not attempted") == 4


def twice(fn):
    """A decorator without functools.wraps."""

    def run(x):
        return fn(x)

    return run


def logged(fn):
    @functools.wraps(fn)
    def run(*args, **kwargs):
        return fn(*args, **kwargs)

    return run


def broken(x, size=5):
    return x.view(size)  # here


@pytest.mark.parametrize(
    "decorate",
    [
        torch.no_grad(),
        torch.inference_mode(),
        logged,
        twice,
        torch.jit.ignore,
        lambda fn: functools.partial(fn, size=7),
        lambda fn: logged(torch.no_grad()(functools.partial(fn, size=7))),
    ],
    ids=["no_grad", "inference_mode", "wraps", "plain", "ignore", "partial", "three"],
)
def test_a_decorated_answer_is_quoted_not_its_decorator(double, decorate):
    message = fails(decorate(broken))
    assert "your function raised RuntimeError" in message
    assert "return x.view(size)  # here" in message


def test_a_decorated_method_is_quoted(double):
    class Double(nn.Module):
        @torch.no_grad()
        def forward(self, x):
            return x.view(5)  # in the method

    assert "return x.view(5)  # in the method" in fails(Double())


def test_arguments_that_do_not_fit_are_no_fault_of_the_result(double):
    for answer in (lambda x, y: x, torch.no_grad()(lambda: 1)):
        assert "your function cannot be called like this: TypeError" in fails(answer)


def test_a_class_can_be_the_answer(capsys):
    class Linear(nn.Module):
        def forward(self, x):
            return x + 1

    class Stub(nn.Module):
        def forward(self, x):
            raise NotImplementedError

    class Broken(nn.Module):
        def forward(self, x):
            return x.nothing

    @check("toy.module", reference=Linear)
    def _(cls):
        expect(cls()(X), X + 1)

    assert teach.exercise("toy.module", Linear) is Linear
    assert teach.exercise("toy.module", Stub) is Linear
    assert "its class has no `forward` yet" in fails(nn.Module, "toy.module")
    assert "your function raised AttributeError" in fails(Broken, "toy.module")
    assert "return x.nothing" in fails(Broken, "toy.module")


def test_einops_and_torch_are_translated(double):
    def split(x):
        return rearrange(x, "b n (h p) -> b h n p", h=3)

    message = fails(split)
    assert 'in the pattern "b n (h p) -> b h n p", for a tensor of shape (2, 3, 4)' in message
    assert "multiply to 3, which does not divide 4" in message
    message = fails(lambda x: x + x[:, :2])
    assert "two tensors meet whose axes 1 have 3 and 2 entries" in message


@pytest.mark.parametrize(
    "pattern, sizes, said",
    [
        ("n d -> d n", {}, "has 2 axes (a bracket is one), the tensor has 3"),
        ("b n (h p) -> b h n p", {}, "at most one may be left open"),
        ("b n (h p) -> b h n p", {"h": 2, "p": 3}, "the sizes of its bracket multiply to 6"),
        ("b n d -> b n", {}, "'d' stands on one side of the arrow only"),
        ("b n 4 -> b n", {}, "give the axis a name"),
        ("b n n -> b n", {}, "the name n stands twice"),
        ("b n d -> b d n", {"h": 2}, "you pass h=..., but h is not in the pattern"),
        ("b n d -> b (d n", {}, "a bracket of the pattern is not closed"),
    ],
)
def test_each_error_of_einops_is_known(pattern, sizes, said):
    with pytest.raises(EinopsError) as caught:
        rearrange(X, pattern, **sizes)
    assert said in plain_words(caught.value)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: X[0] @ X[0], "a transpose missing"),
        (lambda: X @ X, "a transpose missing"),
        (lambda: X.transpose(1, 2).view(-1), "use reshape"),
        (lambda: X[torch.zeros(2)], ".long() makes it one"),
        (lambda: X.gather(1, torch.zeros(1, 1, 1)), ".long() makes it one"),
        (lambda: X[:, 3], "the index 3 on axis 1, which has 3 entries"),
        (lambda: torch.cat([X, X[:, 1:]]), "along axis 0"),
    ],
)
def test_common_errors_of_torch_are_known(call, said):
    with pytest.raises((RuntimeError, IndexError)) as caught:
        call()
    assert said in plain_words(caught.value)
    assert plain_words(ValueError("something else")) is None


def test_a_call_may_not_change_its_arguments(double):
    def reverses(xs):
        out = [x + 0 for x in xs]
        xs.reverse()
        return out

    def fills(w, x):
        w["a"].weight.data.fill_(1)
        return x + 0

    @check("toy.list", reference=list)
    def _(fn):
        expect(fn([X, X + 1]), [X, X + 1])

    @check("toy.module", reference=lambda w, x: x)
    def _(fn):
        expect(fn(nn.ModuleDict({"a": nn.Linear(2, 2)}), X), X)

    assert "changed its input in place (a list of 2)" in fails(reverses, "toy.list")
    assert "changed its input in place (a tensor of shape (2, 2))" in fails(fills, "toy.module")
    assert "in place" in fails(lambda x: x.mul_(2).clone(), "toy.double")
    X.div_(2)


def test_the_settings_of_torch_are_restored(double):
    with torch.device("meta"), torch.no_grad():
        teach.exercise("toy.double", lambda x: x * 2)
        fails(lambda x: x * 3)
        assert torch.zeros(1).is_meta and not torch.is_grad_enabled()
    with default_dtype():
        teach.exercise("toy.double", lambda x: x * torch.tensor(2.0).float())
        assert torch.get_default_dtype() is torch.float64


def test_autoreload_replaces_the_exercises_of_a_module(other):
    autoreload = pytest.importorskip("IPython.extensions.autoreload")
    exercises.names("other")
    other.write_text(SAME.format(2))
    autoreload.superreload(sys.modules["vtlib.teach.exercises.other"])
    teach.exercise("other.same", lambda x: 2)


def test_integers_and_floats_of_numpy_and_torch_are_numbers(double):
    expect(np.int64(3), 3)
    expect(torch.tensor(3), 3)
    expect([np.int64(3), torch.tensor(4)], [3, 4])
    expect(np.bool_(True), True)
    with pytest.raises(Wrong, match="found:    4"):
        expect(np.int64(4), 3)


def test_an_answer_leaves_the_random_numbers_alone(double):
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    teach.exercise("toy.double", lambda x: x * 2 + 0 * torch.rand(()))
    assert torch.equal(torch.rand(2), want)


def test_the_called_result_instead_of_the_function(double):
    with pytest.raises(ValueError, match="needs a function"):
        teach.exercise("toy.double", X)


def test_names_and_lookup(double):
    assert exercises.names("toy") == ["toy.double"]
    assert exercises.get("toy.double")[0] is double
    with pytest.raises(ValueError, match=r"'toy.tripple': no such exercise; there are: toy.double"):
        teach.exercise("toy.tripple", double)
    with pytest.raises(ValueError, match="registered already"):
        check("toy.double", reference=double)
    with pytest.raises(ValueError, match="name=3"):
        exercises.get(3)
    topics = ("patchify", "00.patchify", "divprune.", ".greedy", "DivPrune.greedy", "div prune.x")
    for bad in (*topics, 3, None):
        with pytest.raises(ValueError, match="needs the paper's module"):
            check(bad, reference=double)


SAME = """
from vtlib.teach.exercises import check, expect
@check("other.same", reference=lambda x: x)
def _(fn):
    expect(fn(1), {})
"""


@pytest.fixture
def other(monkeypatch, tmp_path):
    """A module of exercises beside those of the package."""
    (tmp_path / "other.py").write_text(SAME.format(1))
    monkeypatch.setattr(exercises, "__path__", [*exercises.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "other.py"
    sys.modules.pop("vtlib.teach.exercises.other", None)


def test_the_module_of_a_paper_is_imported_when_asked_for(other):
    assert exercises.names("other") == ["other.same"]
    assert exercises.get("other.same")[0](1) == 1
    assert "other.same" in exercises.names()
    assert exercises.names("nothing") == []


def test_a_module_that_is_reloaded_replaces_its_own_exercises(other):
    assert exercises.names("other") == ["other.same"]
    assert fails(lambda x: 2, "other.same")
    other.write_text(SAME.format(2))
    module = importlib.reload(sys.modules["vtlib.teach.exercises.other"])
    teach.exercise("other.same", lambda x: 2)
    importlib.reload(module)  # unchanged
    teach.exercise("other.same", lambda x: 2)


def test_a_name_twice_in_one_module_or_from_another_raises(other):
    exercises.names("other")
    other.write_text(2 * SAME.format(1))
    said = "'other.same' is registered already, by vtlib.teach.exercises.other"
    with pytest.raises(ValueError, match=said):
        importlib.reload(sys.modules["vtlib.teach.exercises.other"])
    with pytest.raises(ValueError, match=said):
        exec(compile(SAME.format(1), "<cell>", "exec"), {"__name__": "__main__"})


def test_expect_other_kinds():
    expect(3, 3)
    expect(torch.tensor(0.5), 0.5)
    expect(np.float32(0.5), 0.5)
    expect(True, True)
    expect((X, 1), (X, 1))
    expect([X], (X,))
    expect({"a": X}, {"a": X})
    odd = torch.tensor([1.0, float("-inf"), float("nan")])
    expect(odd, odd.clone())
    expect(torch.tensor([1, 2]), torch.tensor([1, 2]))
    expect(np.arange(3), np.arange(3))
    expect(X.clone().requires_grad_(), X)
    expect(torch.zeros(0, 3), torch.zeros(0, 3))
    expect(torch.tensor([1 + 2j]), torch.tensor([1 + 2j]))
    for got, want, said in [
        (True, 1, "the type is off"),
        (1, True, "the type is off"),
        (4, 3, "the value is off"),
        ("a", "b", "the value is off"),
        (float("nan"), 1.0, "not a finite number"),
        ((X,), (X, X), "the length is off"),
        (X, (X,), "the type is off"),
        ({"b": 1}, {"a": 1}, "the keys are off"),
        ((X, None), (X, X), r"result\[1\]: your function returned None"),
        ((X, X + 1), (X, X), r"the result\[1\]: the values are off"),
        ({"a": 2}, {"a": 1}, r"\['a'\]: the value is off"),
        (
            torch.tensor([True, False]),
            torch.tensor([True, True]),
            r"largest difference at \[1\]: found False, expected True",
        ),
        (torch.tensor([1, 3]), torch.tensor([1, 2]), "1 of 2 places"),
        (np.arange(3), X, "a numpy array"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")]), "found 2, expected nan"),
        (torch.tensor([torch.inf]), torch.tensor([-torch.inf]), "found inf, expected -inf"),
        (torch.tensor([1 + 2j]), torch.tensor([1 - 2j]), "largest difference"),
        (torch.tensor([-1]), torch.tensor([2**62]), "found -1"),
    ]:
        with pytest.raises(Wrong, match=said):
            expect(got, want)


def test_found_and_expected_are_shown_around_the_largest_difference():
    want = torch.arange(40.0).view(2, 20)
    got = want.clone()
    got[1, 9] = 0
    with pytest.raises(Wrong) as caught:
        expect(got, want)
    assert "found:    [..., 27, 28, 0, 30, 31, ...]  at [1, 7:12]" in str(caught.value)
    assert "expected: [..., 27, 28, 29, 30, 31, ...]  at [1, 7:12]" in str(caught.value)
    got[0, 19] = float("nan")
    with pytest.raises(Wrong, match=r"\[\.\.\., 15, 16, 17, 18, nan\]  at \[0, 15:20\]"):
        expect(got, want)
    with pytest.raises(Wrong, match=r"found:    \[0, 1\]\n"):
        expect(torch.tensor([0, 1]), torch.tensor([0, 2]))


def test_a_mistake_of_the_whole_explains_its_part():
    with pytest.raises(Wrong, match=r"(?s)pair\[0\].*likely cause: the two are swapped") as caught:
        expect((X, X + 1), (X + 1, X), what="pair", mistakes={"the two are swapped": (X, X + 1)})
    assert str(caught.value).count("likely cause") == 1
    with pytest.raises(Wrong, match="likely cause: squared"):
        expect((X, X**2), (X, X), mistakes={"squared": X**2})
    # also when the shape differs
    with pytest.raises(Wrong, match="likely cause: one token too many"):
        expect(X, X[:, 1:], mistakes={"one token too many": X})


def test_tolerance_is_the_documented_one():
    expect(torch.tensor([1.0 + 1e-5]), torch.tensor([1.0]))
    with pytest.raises(Wrong):
        expect(torch.tensor([1.001]), torch.tensor([1.0]))
    expect(torch.tensor([1.001]), torch.tensor([1.0]), atol=0.01)


def test_expect_error():
    def raises(error):
        raise error

    expect_error(lambda: raises(ValueError("no")))
    with pytest.raises(Wrong, match="nothing was raised"):
        expect_error(lambda: None)
    with pytest.raises(Wrong, match="found KeyError"):
        expect_error(lambda: raises(KeyError("x")))
    with pytest.raises(NotImplementedError):
        expect_error(lambda: raises(NotImplementedError()))


def test_a_check_can_live_in_any_module():
    module = types.ModuleType("somewhere")
    source = """
from vtlib.teach.exercises import check
@check("toy.x", reference=len)
def f(fn):
    fn([])
"""
    exec(source, vars(module))
    assert teach.exercise("toy.x", len) is len
