"""Figures and HTML pages on disk: one way of drawing, one template, and sections that other runs add to a page."""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import jinja2
import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.records import digest_of, is_intact, read_json, replace_text, write_beside

# How tables of numbers stand in a page.
NUMBERS: dict[str, Any] = {"float_format": "{:.3g}".format, "na_rep": "–"}
_DPI = 150
# Beside the figures of a folder: a digest of each.
FIGURES = "figures.json"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>personascope: {{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
  a { color: #0b5394; } nav { margin: 1rem 0; } nav a { margin-right: 1rem; white-space: nowrap; }
  ul.found { padding-left: 1.2rem; } ul.found li { margin: .15rem 0; font-size: .94rem; } dt { font-weight: 600; }
  figure { margin: 1.5rem 0; overflow-x: auto; } img { max-width: 100%; } figcaption { color: #444; font-size: .92rem; }
  .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
  summary { cursor: pointer; color: #444; margin: .6rem 0; } .files { font-size: .88rem; }
{%- if wrap %}
  th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
{%- else %}
  th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap; }
  th { vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
{%- endif %}
  .warn { background: #fff3d6; border-left: 4px solid #e69f00; padding: .6rem 1rem; }
  .live { margin: 1rem 0; min-height: 30rem; overflow-x: clip; }
  pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .8rem; }
  @media (max-width: 40rem) { h1 { font-size: 1.35rem; } figure img { max-width: none; width: 44rem; } }
</style>
{{ head | safe }}
</head>
<body>
<h1>{{ heading }}</h1>
{% for sentence in lead %}<p>{{ sentence }}</p>
{% endfor %}
{% if findings %}<ul class="found">
{% for name, sentence in findings %}<li><b>{{ name }}</b>: {{ sentence }}</li>
{% endfor %}</ul>
{% endif %}
{% for sentence in warnings %}<p class="warn">{{ sentence }}</p>
{% endfor %}
<nav aria-label="Contents">{% if summary %}<a href="#in-words">In words</a> {% endif %}
{%- for section in sections %}<a href="#{{ section.anchor }}">{{ section.title }}</a> {% endfor %}
{%- if glossary %}<a href="#glossary">Glossary</a> {% endif %}
{%- if configuration %}<a href="#configuration">Configuration</a>{% endif %}</nav>
{% if summary %}<h2 id="in-words">In words</h2>
{% for sentence in summary %}<p>{{ sentence }}</p>
{% endfor %}{% endif %}
{% for section in sections %}
<h2 id="{{ section.anchor }}">{{ section.title }}</h2>
<p>{{ section.about }}</p>
{% if section.live %}<div class="live">{{ section.live | safe }}</div>
<noscript><p class="files">Where scripts may run, a figure that answers to the pointer stands here; those below show the
same.</p></noscript>{% endif %}
{% if section.table %}<details{% if section.unfolded %} open{% endif %}><summary>Table</summary>
<div class="scroll" tabindex="0">{{ section.table | safe }}</div></details>{% endif %}
{% if section.files %}<p class="files">Every number:
{%- for file in section.files %} <a href="{{ file }}">{{ file }}</a>{{ "," if not loop.last }}{% endfor %}</p>{% endif %}
{% for sentence in section.warnings %}<p class="warn">{{ sentence }}</p>
{% endfor %}
{% for path, caption in section.figures %}
<figure><a href="{{ link(path) }}"><img src="data:image/png;base64,{{ inline(path) }}" alt="{{ caption }}"></a>
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% endfor %}
{% if glossary %}
<h2 id="glossary">Glossary</h2>
<dl>{% for word, meaning in glossary.items() %}<dt>{{ word }}</dt><dd>{{ meaning }}</dd>
{% endfor %}</dl>
{% endif %}
{% if configuration %}
<h2 id="configuration">Configuration</h2>
<p>Caution: the statements include views that many people find offensive; they are there to be located, not endorsed.</p>
<details><summary>Options, model and versions</summary><pre>{{ configuration }}</pre></details>
{% endif %}
</body>
</html>
"""


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes
    ----------
    table
        HTML; nothing where it is empty.
    figures
        PNG files, each with one sentence of reading.
    warnings
        Below the table.
    files
        Tables on disk that hold the numbers, relative to the page.
    unfolded
        Whether the table is shown before it is asked for.
    live
        HTML of a figure that answers to the reader, see :func:`utils.viz.live.embed_figures`.
    """

    title: str
    about: str
    table: str = ""
    figures: Sequence[tuple[Path, str]] = ()
    warnings: Sequence[str] = ()
    files: Sequence[str] = ()
    unfolded: bool = False
    live: str = ""

    @property
    def anchor(self) -> str:
        """What a link to the section names."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def render_page(
    title: str,
    heading: str,
    sections: Iterable[Section],
    *,
    folder: Path,
    lead: Sequence[str] = (),
    findings: Sequence[tuple[str, str]] = (),
    summary: Sequence[str] = (),
    warnings: Sequence[str] = (),
    glossary: Mapping[str, str] | None = None,
    configuration: str = "",
    wrap: bool = False,
    head: str = "",
) -> str:
    """One HTML file with everything inline, which opens from disk.

    Parameters
    ----------
    folder
        Where the page will be: figures are links to their SVG, relative to it.
    lead, findings
        The first screen: sentences, and then a name and a sentence each.
    summary
        Sentences after the contents.
    wrap
        Tables hold sentences and not numbers.
    head
        What the live figures of the sections need once.
    """
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    return page.render(
        title=title,
        heading=heading,
        sections=list(sections),
        lead=lead,
        findings=findings,
        summary=summary,
        warnings=warnings,
        glossary=glossary,
        configuration=configuration,
        wrap=wrap,
        head=head,
        inline=lambda path: base64.b64encode(path.read_bytes()).decode(),
        link=lambda path: quote(path.with_suffix(".svg").relative_to(folder).as_posix()),
    )


def write_section(path: Path, section: Section, **facts: Any) -> None:
    """Write a section for another run's page, with facts by which that run tells whether it is still true.

    Figures are named relative to the file's folder.
    """
    figures = [[file.relative_to(path.parent).as_posix(), caption] for file, caption in section.figures]
    held = {"title": section.title, "about": section.about, "table": section.table, "figures": figures}
    replace_text(path, json.dumps({**facts, **held}, indent=1))


def read_section(path: Path) -> tuple[Section, dict[str, Any]]:
    """What :func:`write_section` wrote: the section and everything in the file."""
    held = json.loads(path.read_text(encoding="utf-8"))
    figures = [(path.parent / file, caption) for file, caption in held["figures"]]
    return Section(held["title"], held["about"], held["table"], figures), held


@contextmanager
def drawing_style() -> Iterator[None]:
    """The style in which figures are drawn and written."""
    with matplotlib.rc_context(_STYLE):
        yield


def write_figures(drawn: Iterable[tuple[str, Figure | Axes]], folder: Path) -> list[Path]:
    """Write figures by name as PNG and SVG, close them, and return the PNG files; they are drawn in the style of all.

    ``figures.json`` beside them tells afterwards whether they are as they were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with drawing_style():
        for name, made in drawn:
            figure = figure_of(made)
            for kind in ("png", "svg"):
                save_figure(figure, folder / name, kind)
            plt.close(figure)
            written.append(folder / f"{name}.png")
    digests = {file.name: digest_of(file) for png in written for file in (png, png.with_suffix(".svg"))}
    replace_text(folder / FIGURES, json.dumps(digests, indent=1))
    return written


def changed_figures(folder: Path) -> list[str]:
    """The figures that are missing, or not as :func:`write_figures` wrote them to the folder."""
    return [
        name for name, digest in read_json(folder / FIGURES).items() if not is_intact(folder / name, {"digest": digest})
    ]


def is_page(path: Path) -> bool:
    """Whether a file is a page to its end."""
    return path.is_file() and path.read_bytes().rstrip().endswith(b"</html>")


def save_figure(figure: Figure, stem: Path, kind: Literal["png", "svg", "pdf"]) -> Path:
    """Write a figure as ``<stem>.<kind>``, without dates, beside its place and then into it."""
    options: dict[str, Any] = {
        "png": {"dpi": _DPI},
        "svg": {"metadata": {"Date": None}},
        "pdf": {"metadata": {"CreationDate": None}},
    }[kind]
    path = stem.with_name(f"{stem.name}.{kind}")
    # Names inside an SVG are drawn at random unless they are salted: same seed, same bytes. Text in a PDF stays text.
    with plt.rc_context({"svg.hashsalt": "personascope", "pdf.fonttype": 42}), write_beside(path) as beside:
        figure.savefig(beside, format=kind, bbox_inches="tight", **options)
    return path


def figure_of(drawn: Figure | Axes) -> Figure:
    """The figure that something was drawn on."""
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    assert isinstance(figure, Figure)
    return figure


def table_html(table: pd.DataFrame, **options: Any) -> str:
    """A table as it stands in a page."""
    return table.to_html(index=False, border=0, **options)
