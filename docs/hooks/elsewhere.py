"""Pages of the site that stand elsewhere in the repository, and links that work in both places.

The documents are written for readers of the repository: they link to files, also to some outside `docs/`. Those
that a reader of the site wants become pages of it; a link to any other file becomes plain text.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]

NOTEBOOKS = sorted(f"examples/{path.name}" for path in (ROOT / "examples").glob("*.ipynb"))
EXAMPLES = sorted(f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py"))
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "experiments/LOG.md": "log.md",
    "experiments/quality/README.md": "finished-runs.md",
    "src/ssmn/ops/README.md": "operations.md",
    "examples": "examples/index.md",
    **{path: f"examples/notebook-{Path(path).stem}.md" for path in NOTEBOOKS},
    **{path: f"examples/{Path(path).stem.replace('_', '-')}.md" for path in EXAMPLES},
}
"""What is shown from outside `docs/`: path in the repository, page of the site."""

META: dict[str, dict[str, Any]] = {
    "index.md": {"hide": ["navigation"]},
    "log.md": {"search": {"boost": 0.2}},
    "finished-runs.md": {"search": {"boost": 0.5}},
}
"""What Material reads at the head of a page; written there, it would show in the repository."""

_FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_LIST_IN_TEXT = re.compile(r"^((?![ >|#]|[-*] |\d+\. ).+)\n(?=[-*] )", re.MULTILINE)


def content(path: str) -> str:
    """The Markdown of a page that stands elsewhere."""
    if path == "examples":
        return _list_of_examples()
    if path in NOTEBOOKS:
        return _notebook(json.loads((ROOT / path).read_text(encoding="utf-8")))
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    summary = ast.get_docstring(ast.parse(text)) or ""
    return f"# {Path(path).name}\n\n{summary}\n\n```sh\npython {path}\n```\n\n```python\n{text}```\n"


def _list_of_examples() -> str:
    lines = ["# The examples", "", "Short programs; each runs by itself in a clone and is run by the tests.", ""]
    for path in EXAMPLES:
        summary = (ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        lines.append(f"- [{Path(path).name}]({Path(path).name}): {' '.join(summary.split())}")
    for path in NOTEBOOKS:
        title = "".join(json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"][0]["source"]).splitlines()[0]
        lines.append(f"- [{Path(path).name}]({Path(path).name}), a notebook: {title.removeprefix('# ')}.")
    return "\n".join([*lines, ""])


def _notebook(notebook: dict[str, Any]) -> str:
    """A notebook's text, code and printed or drawn outputs."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![output](data:image/png;base64,{''.join(data['image/png'].split())})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def place(page: str) -> str:
    """Where a page of the site stands in the repository."""
    return next((path for path, name in PAGES.items() if name == page), f"docs/{page}")


def relinked(markdown: str, page: str) -> str:
    """The text with its links leading to pages of the site, and with the lists that Markdown's strict readers miss.

    Args:
        markdown: The text of the page.
        page: Its path within the site.
    """
    own = place(page)
    folder = own if (ROOT / own).is_dir() else posixpath.dirname(own)

    def moved(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        path, hash_mark, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("data:"):
            return link[0]
        named = posixpath.normpath(posixpath.join(folder, path))
        if not (ROOT / named).exists():
            return link[0]
        inside = PAGES.get(named) or (named.removeprefix("docs/") if (ROOT / named).is_file() else named)
        if named not in PAGES and not named.startswith("docs/"):
            return text
        return f"{image}[{text}]({posixpath.relpath(inside, posixpath.dirname(page) or '.')}{hash_mark}{anchor})"

    parts = _FENCED.split(markdown)
    parts[::2] = [_LIST_IN_TEXT.sub(r"\1\n\n", _LINK.sub(moved, part)) for part in parts[::2]]
    return "".join(parts)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages; mkdocs calls it."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=content(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Moves the links and sets what Material reads; mkdocs calls it."""
    page.meta.update(META.get(page.file.src_uri, {}))
    return relinked(markdown, page.file.src_uri)
