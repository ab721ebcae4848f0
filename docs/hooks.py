"""What the site is made of besides its pages: the notebooks, a picture, and a page of functions for each folder."""

import ast
import logging
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):<code>~?([\w.]+)</code>")
_SCRIPT = re.compile(r"<script\b[^>]*>.*?</script>", re.DOTALL)
_IMPORT = re.compile(r"""\bimport\(\s*["'](?:https?:)?//[^"']+""")
_LOADED = re.compile(
    r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"'\s>]+|url\(["']?(?:https?:)?//[^)]+"""
)
_log = logging.getLogger("mkdocs.hooks.site")
_defined: dict[str, str] = {}  # utils.layers.best_layer: utils.layers.separation.best_layer


@event_priority(100)  # before the plugin that looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of the folder of pages."""
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File(f"notebooks/{notebook.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    picture = ROOT / "output" / "example" / "accuracy_curves.png"
    files.append(File.generated(config, picture.name, abs_src_path=str(picture)))
    for folder in (ROOT / "deepscan", *sorted((ROOT / "utils").iterdir())):
        if names := _public_names(folder):
            files.append(File.generated(config, f"api/{folder.name}.md", content=_page(folder, names)))
            _defined.update({f"{_package(folder)}.{name}": path for name, path in names.items()})
    return files


def on_page_content(html: str, **_: object) -> str:
    """Names that docstrings point to, as links where the site has them."""

    def link(found: re.Match[str]) -> str:
        name = found[1]
        return f'<autoref optional identifier="{_defined.get(name, name)}"><code>{name}</code></autoref>'

    return _ROLE.sub(link, html)


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Leave out scripts that fetch a library (pages of notebooks have one, for diagrams); nothing else may be fetched."""
    output = _SCRIPT.sub(lambda found: "" if _IMPORT.search(found[0]) else found[0], output)
    for found in _LOADED.findall(output):
        _log.warning("%s loads from elsewhere: %s", page.file.src_uri, found)
    return output


def _package(folder: Path) -> str:
    return folder.relative_to(ROOT).as_posix().replace("/", ".")


def _page(folder: Path, names: dict[str, str]) -> str:
    package = _package(folder)
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    parts = [f"# {package}", about or "", f"`from {package} import …`"]
    return "\n\n".join([*parts, *(f"::: {path}" for path in names.values())])


def _public_names(folder: Path) -> dict[str, str]:
    """What a folder hands out, and where each is defined."""
    stub = folder / "__init__.pyi"
    file = stub if stub.is_file() else folder / "__init__.py"
    if not file.is_file():
        return {}
    package = _package(folder)
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith(package)):
            module = f"{package}.{node.module}" if node.level else node.module
            found |= {alias.name: f"{module}.{alias.name}" for alias in node.names}
    return found
