"""Figures and HTML pages on disk."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.study.results import Study

_DPI = 150

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>personascope: {{ model }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
  figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #444; font-size: .92rem; }
  .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
  th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap; }
  th { vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
  .warn { background: #fff3d6; border-left: 4px solid #e69f00; padding: .6rem 1rem; }
  pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .8rem; }
</style>
</head>
<body>
<h1>Personas in {{ model }}</h1>
{% for sentence in summary %}<p>{{ sentence }}</p>
{% endfor %}
{% for sentence in warnings %}<p class="warn">{{ sentence }}</p>
{% endfor %}
{% for section, about, table, figures in sections %}
<h2>{{ section }}</h2>
<p>{{ about }}</p>
{% if table %}<div class="scroll">{{ table | safe }}</div>{% endif %}
{% for name, caption, image in figures %}
<figure><img src="data:image/png;base64,{{ image }}" alt="{{ name }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% endfor %}
<h2>Configuration</h2>
<p>Caution: the statements include views that many people find offensive; they are there to be located, not endorsed.</p>
<pre>{{ configuration }}</pre>
</body>
</html>
"""


@dataclass(frozen=True)
class FigureEntry:
    """A figure of a study: its file name without ending, the section of the report, and one sentence of reading."""

    name: str
    section: str
    caption: str
    draw: Callable[[Study], Figure]


def save_figure(figure: Figure, stem: Path) -> None:
    """Write a figure as ``<stem>.png`` and ``<stem>.svg``, without dates."""
    figure.savefig(stem.with_suffix(".png"), dpi=_DPI, bbox_inches="tight")
    # Names inside an SVG are drawn at random unless they are salted: same seed, same bytes.
    with plt.rc_context({"svg.hashsalt": "personascope"}):
        figure.savefig(stem.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})


def _figure_of(ax: Axes) -> Figure:
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
