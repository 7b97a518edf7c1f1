"""Sizes that keep the code readable, and what is written for its readers."""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nnit_dist"
FILES = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(node: ast.AST, public: bool = True) -> Iterator[tuple[Function, bool]]:
    """All functions below a node, and whether they are public."""
    for child in ast.iter_child_nodes(node):
        seen = public and not getattr(child, "name", "").startswith("_")
        if isinstance(child, Function):
            yield child, seen
            yield from functions(child, public=False)
        else:
            yield from functions(child, seen if isinstance(child, ast.ClassDef) else public)


def commands(name: str) -> bool:
    """Whether a file has commands, whose arguments are options of the command line."""
    return name.startswith("cli/") and "Annotated" in FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_short_and_its_functions_say_what_they_do(name):
    assert len(FILES[name].splitlines()) <= 350
    undocumented = [
        function.name
        for function, public in functions(ast.parse(FILES[name]))
        if public and not ast.get_docstring(function)
    ]
    assert not undocumented


@pytest.mark.parametrize("name", [name for name in FILES if not commands(name)])
def test_a_function_has_few_arguments_and_those_beyond_four_are_named(name):
    for function, _ in functions(ast.parse(FILES[name])):
        words = function.args
        given = [a.arg for a in words.posonlyargs + words.args if a.arg not in ("self", "cls")]
        assert len(given) + len(words.kwonlyargs) <= 7, function.name
        # torch calls `forward` by position, and an integrator `_predict`.
        if function.name not in ("forward", "_predict"):
            assert len(given) <= 4, function.name


def test_functions_are_short():
    lengths = sorted(
        (function.end_lineno or 0) - function.lineno + 1
        for text in FILES.values()
        for function, _ in functions(ast.parse(text))
    )
    assert statistics.median(lengths) <= 8
    assert lengths[int(0.9 * len(lengths))] <= 23


def test_what_has_fields_is_no_dictionary_of_anything():
    assert sum(text.count("dict[str, Any]") for text in FILES.values()) < 20


def test_random_numbers_of_torch_come_from_named_streams():
    """What a shipped model writes stays as it is: its file has the older way of seeding."""
    seeding = {name for name, text in FILES.items() if "torch.Generator()" in text}
    assert seeding == {"core/rng.py", "nnit/model.py"}
    assert not [name for name, text in FILES.items() if re.search(r"[^_\w.]hash\(", text)]
