"""What the site is made of besides its pages: the notebooks, a picture, and a page of functions for each folder."""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):<code>~?([\w.]+)</code>")


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
    return files


def on_page_content(html: str, **_: object) -> str:
    """Names that docstrings point to, as links where the site has them."""
    return _ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', html)


def _page(folder: Path, names: dict[str, str]) -> str:
    package = folder.relative_to(ROOT).as_posix().replace("/", ".")
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    parts = [f"# {package}", about or "", f"`from {package} import …`"]
    return "\n\n".join([*parts, *(f"::: {path}" for path in names.values())])


def _public_names(folder: Path) -> dict[str, str]:
    """What a folder hands out, and where each is defined."""
    stub = folder / "__init__.pyi"
    file = stub if stub.is_file() else folder / "__init__.py"
    if not file.is_file():
        return {}
    package = folder.relative_to(ROOT).as_posix().replace("/", ".")
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith(package)):
            module = f"{package}.{node.module}" if node.level else node.module
            found |= {alias.name: f"{module}.{alias.name}" for alias in node.names}
    return found
