"""The rooms: imports go down the list of rooms only, lazy ones included, and never in a circle."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import networkx
import pytest

PACKAGE = Path(__file__).parents[1] / "nnit_dist"
ROOMS = (
    "core",
    "artifacts",
    "runtime",
    "envs",
    "rollout",
    "training",
    "population",
    "hypernet",
    "nnit",
    "baselines",
    "transfer",
    "report",
    "stages",
    "search",
    "bench",
    "cli",
)


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}
ALOFT = {"nnit_dist", "nnit_dist.__main__"}  # the public names, and the command


def imports_of(module: str) -> set[str]:
    """Modules of the package that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module} has a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name in MODULES and MODULES[name].name != "__init__.py"}


def test_every_room_is_known():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("module", sorted(set(MODULES) - ALOFT))
def test_a_room_imports_only_itself_and_those_before_it(module):
    rank = ROOMS.index(module.split(".")[1])
    above = [name for name in imports_of(module) if ROOMS.index(name.split(".")[1]) > rank]
    assert not above


def test_no_imports_go_in_a_circle():
    graph = networkx.DiGraph((m, name) for m in set(MODULES) - ALOFT for name in imports_of(m))
    assert list(networkx.simple_cycles(graph)) == []
    assert graph.number_of_edges() > 300


def in_new_process(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "code",
    [
        "from pathlib import Path\nfrom nnit_dist.stages.config_file import load_config\n"
        f"load_config(Path({str(PACKAGE.parent / 'configs' / 'tabletop.yaml')!r}))",
        "from typer.testing import CliRunner\nfrom nnit_dist.cli.main import app\n"
        "assert 'nnit.steps' in CliRunner().invoke(app, ['keys']).output",
        "import nnit_dist",
    ],
    ids=["configuration", "nnit keys", "package"],
)
def test_what_is_light_imports_nothing_heavy(code):
    loaded = in_new_process(f"{code}\nimport sys\nprint('\\n'.join(sys.modules))").split()
    heavy = {"ray", "torch", "mani_skill", "sapien", "gymnasium", "scipy", "matplotlib"}
    assert not heavy & set(loaded)


def test_loading_a_model_leaves_the_process_as_it_was():
    code = """
import json, os, warnings
before = dict(os.environ), list(warnings.filters)
import torch
with_torch = dict(os.environ), list(warnings.filters)
import nnit_dist
model = nnit_dist.load_model("PushCube-v1")
model.generate((16, 16), 1, steps=1)
after = dict(os.environ), list(warnings.filters)
print(json.dumps([with_torch[0] == after[0], with_torch[1] == after[1]]))
"""
    assert json.loads(in_new_process(code)) == [True, True]
