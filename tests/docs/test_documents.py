"""README and pages hold what they say: links, commands, configuration keys, the tree of files."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from nnit_dist.artifacts.shipped import shipped
from nnit_dist.cli.main import app
from nnit_dist.core.files import read_json
from nnit_dist.stages.config import known_keys

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nnit_dist"
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
KEYS = {key.path: key.default for key in known_keys("")}
SECTIONS = {path.split(".")[0] for path in KEYS if "." in path}
PATHS = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|md|json|svg))`")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 1200


@pages
def test_every_link_leads_somewhere(page):
    for target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page.name} links to {target}"


@pages
def test_every_file_that_is_named_exists(page):
    named = PATHS.findall(page.read_text())
    for name in (name for name in named if not name.startswith("runs/")):
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), f"{page.name} names {name}"


@pages
def test_every_command_exists(page):
    known = commands()
    for command in named_commands(page.read_text()):
        assert command in known, f"{page.name} names nnit {command}"


def test_the_readme_and_the_reference_name_commands():
    assert {"generate", "evaluate", "submit", "tune"} <= set(named_commands(README.read_text()))
    reference = (ROOT / "docs" / "reference.md").read_text()
    assert set(named_commands(reference)) == commands() - {"zoo", "bench"}


@pages
def test_every_configuration_key_exists(page):
    for key in named_keys(page.read_text()):
        assert is_key(key), f"{page.name} names the key {key}"


def test_keys_are_found_in_the_pages():
    configuration = (ROOT / "docs" / "configuration.md").read_text()
    assert {"nnit.steps", "population.gpu", "align.max_average_drop"} <= set(
        named_keys(configuration)
    )


def test_the_readme_names_every_room():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"pretrained"}
    (tree,) = trees(README.read_text())
    assert {name for name in tree if name.endswith("/")} >= {f"nnit_dist/{r}/" for r in rooms}
    assert all((ROOT / name).exists() for name in tree)


def test_the_architecture_names_every_file():
    (tree,) = trees((ROOT / "docs" / "architecture.md").read_text())
    named = [name for name in tree if name.endswith(".py")]
    files = [
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" or path.parent == PACKAGE
    ]
    assert sorted(named) == sorted(files)


def test_the_results_of_the_readme_are_those_of_the_shipped_model():
    results = read_json(shipped("PushCube-v1").path / "evaluate" / "results.json")
    figures = {
        (row["kind"], row["method"]): [row["success_once"], row["low"], row["high"]]
        for row in results["tasks"]["PushCube-v1"]["summaries"]
    }
    table = re.search(r"^\| topologies .*?\n\n", README.read_text(), re.MULTILINE | re.DOTALL)
    assert table
    header, _, *rows = [cells_of(line) for line in table[0].split("\n") if line]
    for kind, row in zip(("teacher", "all unseen", "deeper", "wider"), rows, strict=True):
        for method, cell in zip(header[1:], row[1:], strict=True):
            expected = [100 * share for share in figures.get((kind, method), [])]
            shown = [float(number) for number in re.findall(r"[\d.]+", cell)]
            assert shown == pytest.approx(expected, abs=0.0501), f"{row[0]}, {method}"


def cells_of(line: str) -> list[str]:
    """Cells of a line of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def links(text: str) -> list[str]:
    """Relative targets of links and images."""
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text))
    return [target for target in targets if "://" not in target]


def anchors(text: str) -> set[str]:
    """What headings are called in links, by GitHub and on the site."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def commands() -> set[str]:
    """Every command of `nnit`, and every group: `run`, `zoo`, `zoo ls`."""
    root = typer.main.get_command(app)
    groups = {name: getattr(command, "commands", {}) for name, command in root.commands.items()}
    return set(groups) | {f"{name} {below}" for name, own in groups.items() for below in own}


def named_commands(text: str) -> Iterator[str]:
    """Commands in code, with the subcommand where a group has one: `generate`, `zoo ls`."""
    groups = {command.split()[0] for command in commands() if " " in command}
    for code in code_of(text):
        for name, below in re.findall(
            r"(?:^|[\s/])nnit ([a-z]+)(?: ([a-z]+))?", code, re.MULTILINE
        ):
            yield f"{name} {below}" if name in groups and below else name


def named_keys(text: str) -> Iterator[str]:
    """Configuration keys in code: `nnit.steps`, `nnit.steps: 500`, and what `--set` is given."""
    for code in code_of(text):
        yield from re.findall(r"--set ([a-z][\w.-]*)=", code)
        key = re.fullmatch(r"(\w+(?:\.[\w-]+)+)(?:(?:: |=).*)?", code)
        if key and key[1].split(".")[0] in SECTIONS:
            yield key[1]


def is_key(key: str) -> bool:
    """Whether a configuration has such a key, or a section or a mapping that it lies in."""
    mapping = key.rpartition(".")[0]
    return (
        key in KEYS
        or any(known.startswith(f"{key}.") for known in KEYS)
        or isinstance(json.loads(KEYS.get(mapping) or "null"), dict)
    )


def code_of(text: str) -> list[str]:
    """The blocks of code, and what stands between backticks elsewhere."""
    return [*FENCE.findall(text), *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))]


def trees(text: str) -> list[list[str]]:
    """Paths of the files in each tree of the package, which indents by two spaces a level."""
    blocks = [block for block in FENCE.findall(text) if "\nnnit_dist/" in block]
    return [list(tree_paths(block)) for block in blocks]


def tree_paths(block: str) -> Iterator[str]:
    above: list[str] = []
    for indent, name in re.findall(r"^( *)([\w.]+/?)(?=\s|$)", block, re.MULTILINE):
        above = [*above[: len(indent) // 2], name]
        yield "".join(above)
