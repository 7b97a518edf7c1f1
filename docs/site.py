"""What the site adds to the pages of this directory: the start page, and pages of docstrings.

`README.md` lies above the documents; it becomes `index.md`. Every room of the package gets a page.
"""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nnit_dist"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of docstrings to the navigation."""
    pages: list[Any] = ["api/index.md", *({room: f"api/{room}.md"} for room in rooms())]
    config.nav = [*(config.nav or []), {"Python API": pages}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the start page and the pages of docstrings."""
    readme = (ROOT / "README.md").read_text().replace("](docs/", "](")
    pages = {"index.md": readme, "api/index.md": public_page()}
    pages |= {f"api/{room}.md": room_page(room) for room in rooms()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def rooms() -> list[str]:
    """Names of the package's rooms."""
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def public_page() -> str:
    """What `import nnit_dist` gives, and a link to every room."""
    links = "\n".join(f"- [{room}]({room}.md)" for room in rooms())
    return (
        "# Python API\n\n"
        "`nnit_dist` itself has the names that most programs need. Each is loaded when it is asked "
        "for: a policy needs neither torch nor Ray.\n\n"
        "::: nnit_dist\n    options: {show_root_heading: false, heading_level: 2, "
        "show_root_toc_entry: false}\n\n"
        f"## Rooms\n\n{links}\n"
    )


def room_page(room: str) -> str:
    """The docstrings of a room's public modules."""
    modules = sorted(
        path.stem for path in (PACKAGE / room).glob("*.py") if not path.stem.startswith("_")
    )
    entries = "\n\n".join(
        f"## {module}\n\n::: nnit_dist.{room}.{module}\n    options: {{show_root_heading: false, "
        "show_root_toc_entry: false}"
        for module in modules
    )
    return f"# nnit_dist.{room}\n\n{entries}\n"
