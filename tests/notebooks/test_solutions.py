"""The exercises: a stub is no error, solutions are accepted, mistakes are told what is wrong.

tests/teach/wrong/PAPER.py holds the mistakes:
WRONG = {"PAPER.name": [("short name", "python source", "fragment of the message"), ...]}.
"""

import ast
import contextlib
import functools
import inspect
import itertools
import re
import runpy

import pytest
import torch

from tests.settings import default_dtype, deterministic, meta_device
from tools.notebook import (
    ROOT,
    code_cells,
    exercise_lines,
    paths,
    plain_python,
    read,
    solution_code,
    tags,
)
from vtlib import teach

NOTEBOOKS = {path.stem: path for path in paths()}
CASES = [
    (stem, name)
    for stem, path in NOTEBOOKS.items()
    for cell in code_cells(read(path))
    if "exercise" in tags(cell)
    for name in re.findall(r"""teach\.exercise\(\s*["']([^"']+)["']""", cell.source)
]
HOME = {name: stem for stem, name in CASES}
FILES = sorted((ROOT / "tests" / "teach" / "wrong").glob("*.py"))
WRONG = {
    name: rows for file in FILES for name, rows in runpy.run_path(str(file))["WRONG"].items()
}
MISTAKES = [(HOME.get(name), name, *row) for name, rows in WRONG.items() for row in rows]


DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def define(source, namespace):
    """Run what a cell defines: imports, functions, classes, plain constants.

    The rest (training, plots) is left out, and what needs a value that only a real run has.
    """
    for node in ast.parse(plain_python(source)).body:
        if isinstance(node, DEFINITIONS) or is_constant(node):
            with contextlib.suppress(NameError):
                exec(compile(ast.Module([node], []), "<notebook>", "exec"), namespace)


def is_constant(node):
    """`name = value` without any computing; what changes a part of a value is no definition."""
    if not isinstance(node, ast.Assign):
        return False
    if not all(isinstance(target, (ast.Name, ast.Tuple)) for target in node.targets):
        return False
    try:
        ast.literal_eval(node.value)
    except (ValueError, TypeError):
        return ast.unparse(node.value) == "teach.device()"
    return True


@functools.cache
def prepared(stem):
    """{exercise name: (names known before its cell, its source, solution, what is handed in)}.

    What is handed in: the expression that teach.exercise gets.
    """
    namespace, found = {"__name__": "__notebook__"}, {}
    cells = read(NOTEBOOKS[stem]).cells
    for i, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        if "exercise" not in tags(cell):
            define(cell.source, namespace)
            continue
        solution = solution_code(next(c for c in cells[i:] if "solution" in tags(c)))
        for name, line in exercise_lines(cell.source):
            found[name] = (dict(namespace), cell.source, solution, handed_in(line))
        exec(compile(solution, f"<solution {i}>", "exec"), namespace)
    return found


def handed_in(line):
    """The second argument of teach.exercise, as source."""
    calls = [node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call)]
    (call,) = (node for node in calls if ast.unparse(node.func) == "teach.exercise")
    return ast.unparse(call.args[1])


def attempt(stem, name, source):
    """What teach.exercise makes of `source` in the place of the stub: (what it returned, got)."""
    fn = answer_of(stem, name, source)
    return teach.exercise(name, fn), fn


def answer_of(stem, name, source):
    """What `source`, in the place of the stub, hands to teach.exercise."""
    before, _, _, expression = prepared(stem)[name]
    namespace = dict(before)
    exec(compile(source, f"<{name}>", "exec"), namespace)
    torch.manual_seed(0)
    return eval(expression, namespace)


def stub(stem, name):
    """The exercise's cell without its last call."""
    source = prepared(stem)[name][1]
    for _, line in exercise_lines(source):
        source = source.replace(line, "")
    return source


@pytest.mark.parametrize("stem,name", CASES, ids=[name for _, name in CASES])
def test_not_attempted(stem, name, capsys):
    got, fn = attempt(stem, name, stub(stem, name))
    assert "not attempted" in capsys.readouterr().out
    reference, _ = teach.exercises.get(name)
    assert got is reference and got is not fn


@pytest.mark.parametrize("stem,name", CASES, ids=[name for _, name in CASES])
def test_solution_is_accepted(stem, name, capsys):
    got, fn = attempt(stem, name, prepared(stem)[name][2])
    assert "correct" in capsys.readouterr().out
    assert got is fn


@pytest.mark.parametrize("stem,name", CASES, ids=[name for _, name in CASES])
def test_reference_is_accepted(stem, name, capsys):
    reference, _ = teach.exercises.get(name)
    assert teach.exercise(name, reference) is reference


@pytest.mark.parametrize(
    "stem,name,short,source,fragment",
    MISTAKES,
    ids=[f"{name}-{short}".replace(" ", "_") for _, name, short, *_ in MISTAKES],
)
def test_mistake_is_explained(stem, name, short, source, fragment):
    with pytest.raises(teach.Wrong) as caught:
        attempt(stem, name, source)
    message = str(caught.value)
    assert fragment in message, f"the message does not help:\n{message}"
    assert name in message


# --------------------------------------------------- every check, whatever torch is set to


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


MAKERS = [meta_device, default_dtype]  # of tensors that say no device or dtype
SETTINGS = [*MAKERS, torch.no_grad, torch.inference_mode, deterministic, autocast]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
@pytest.mark.parametrize("stem,name", CASES, ids=[name for _, name in CASES])
def test_right_is_right_under_any_setting_of_torch(stem, name, setting, capsys):
    reference, _ = teach.exercises.get(name)
    own = answer_of(stem, name, prepared(stem)[name][2])
    with setting():
        assert teach.exercise(name, own) is own
        assert teach.exercise(name, reference) is reference
    assert capsys.readouterr().out.count("correct") == 2


def same(a, b):
    with torch.no_grad():
        return teach.compare._same(a, b, 1e-6, 1e-5)


@pytest.mark.parametrize("setting", MAKERS, ids=lambda setting: setting.__name__)
@pytest.mark.parametrize("stem,name", CASES, ids=[name for _, name in CASES])
def test_a_reference_follows_its_inputs(stem, name, setting):
    """Outside the check, where the notebook calls it, too."""
    reference, _ = teach.exercises.get(name)
    if not any(has_tensors(list(arguments.values())) for arguments, _ in calls(name)):
        pytest.skip("there is no tensor among its inputs")
    for arguments, result in calls(name):
        torch.manual_seed(0)
        with setting():
            again = reference(**arguments)
        kinds = [
            [(x.dtype, x.device) for x in value if isinstance(x, torch.Tensor)]
            for value in (flat(again), flat(result))
        ]
        assert kinds[0] == kinds[1]
        assert name == "tokenformer.grow" or same(again, result)


def flat(value):
    if isinstance(value, (tuple, list)):
        return [x for part in value for x in flat(part)]
    return [value]


# ------------------------------------------------------------------- what a check asks of an answer


@functools.cache
def calls(name):
    """[({parameter: value}, result)] of the calls that the check makes of the reference."""
    reference, _ = teach.exercises.get(name)
    signature, made = inspect.signature(reference), []

    def recorded(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        result = reference(*args, **kwargs)
        made.append((copy_of(dict(bound.arguments)), copy_of(result)))
        return result

    teach.exercise(name, recorded)
    return made


def copy_of(value):
    """A copy of the tensors, gradients pass on; functions and modules as they are."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copy_of(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(copy_of(part) for part in value)
    return value


def parameters(stem, name):
    """The names of the arguments, as the notebook's stub has them."""
    answer = answer_of(stem, name, prepared(stem)[name][2])
    return list(inspect.signature(answer).parameters)


@pytest.mark.parametrize("stem,name", CASES, ids=[name for _, name in CASES])
def test_a_check_varies_every_argument(stem, name):
    """An answer with a value of the first call written in, in place of the argument, is wrong."""
    reference, _ = teach.exercises.get(name)
    signature = inspect.signature(reference)
    named = list(signature.parameters)
    for place in range(len(parameters(stem, name))):
        first = calls(name)[0][0][named[place]]

        def answer(*args, parameter=named[place], first=first, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.arguments[parameter] = first
            return reference(*bound.args, **bound.kwargs)

        try:
            teach.exercise(name, answer)
        except teach.Wrong:
            continue
        pytest.fail(f"{named[place]}={first!r:.80}, written in, passes")


def overwrite(value):
    """Change all tensors in a value in place; whether there were any."""
    if isinstance(value, torch.Tensor):
        if value.dtype is torch.bool:
            value.logical_not_()
        else:
            value.detach().add_(1)                             # a leaf with a gradient, too
        return True
    if isinstance(value, (tuple, list)):
        return any([overwrite(part) for part in value])
    return False


@pytest.mark.parametrize("stem,name", CASES, ids=[name for _, name in CASES])
def test_an_answer_may_not_overwrite_an_argument(stem, name):
    """Not in any one of the calls, and not after the right result has been computed."""
    reference, _ = teach.exercises.get(name)
    signature = inspect.signature(reference)
    for number, (arguments, _) in enumerate(calls(name)):
        for parameter in [key for key, value in arguments.items() if has_tensors(value)]:
            counter = itertools.count()

            def answer(*args, number=number, counter=counter, parameter=parameter, **kwargs):
                bound = signature.bind(*args, **kwargs)
                result = copy_of(reference(*args, **kwargs))
                if next(counter) == number:
                    overwrite(bound.arguments[parameter])
                return result

            with pytest.raises(teach.Wrong, match="changed its input in place"):
                teach.exercise(name, answer)


def has_tensors(value):
    return any(isinstance(part, torch.Tensor) for part in flat(value))


def test_registry_and_mistakes_cover_the_notebooks():
    names = [name for _, name in CASES]
    assert sorted(names) == sorted(teach.exercises.names()), (
        "exercises of the notebooks and of vtlib/teach/exercises differ"
    )
    assert not set(WRONG) - set(names), "mistakes of exercises that don't exist"
    few = [name for name in names if len(WRONG.get(name, [])) < 3]
    assert not few, f"at least three wrong answers each, in tests/teach/wrong: {few}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_of_mistakes_is_about_one_paper(file):
    papers = {name.partition(".")[0] for name in runpy.run_path(str(file))["WRONG"]}
    assert papers <= {file.stem}                           # none yet in the stubs of `make new`
