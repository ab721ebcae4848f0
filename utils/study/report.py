"""The report of a study: one HTML file with everything inline, which opens from disk."""

import base64
import logging
from pathlib import Path
from typing import Any

import jinja2

from utils.records import replace_text
from utils.report_sections import about_layers, about_nodes, about_overlap, about_scan, list_warnings, summarise_study
from utils.study.figures import list_figures
from utils.study.results import Study
from utils.viz.style import short_name

logger = logging.getLogger(__name__)

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


def write_report(study: Study) -> None:
    """Write ``report.html`` into the study folder; figures must have been drawn."""
    sections = []
    abouts = {"Layers": about_layers, "Scan": about_scan, "Nodes": about_nodes, "Overlap": about_overlap}
    entries = list(list_figures(study))
    for section, describe in abouts.items():
        about, table = describe(study)
        drawn = [entry for entry in entries if entry.section == section]
        figures = [
            (entry.name, entry.caption, _inline(study.folder / "figures" / f"{entry.name}.png")) for entry in drawn
        ]
        shown = "" if table is None else table.to_html(index=False, border=0, float_format="{:.3g}".format, na_rep="–")
        sections.append((section, about, shown, figures))
    sections += _describe_causal(study)
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    html = page.render(
        model=study.record["activations"]["model"],
        summary=summarise_study(study),
        warnings=list_warnings(study),
        sections=sections,
        configuration=_configuration(study.record),
    )
    replace_text(study.folder / "report.html", html)


def _describe_causal(study: Study) -> list[tuple[str, str, str, list[tuple[str, str, str]]]]:
    """A section for each persona whose nodes were put to a causal check."""
    # Imported here: a study without such a check needs nothing of what it takes.
    from utils.experiments.causal import key_of_study, open_causal
    from utils.experiments.causal_report import SHOWN, describe_found, list_drawn, main_effects

    sections = []
    for path in sorted(study.folder.glob("causal/*/causal.json")):
        result = open_causal(path.parent)
        if result.record["study"] != key_of_study(study):
            logger.warning(
                "%s is of an earlier state of the study and left out; run personascope causal again", path.parent
            )
            continue
        table = main_effects(result)[SHOWN].rename(columns=lambda name: name.replace("_", " "))
        shown = table.to_html(index=False, border=0, float_format="{:.3g}".format, na_rep="–")
        figures = [(file.stem, caption, _inline(file)) for file, caption in list_drawn(result)]
        title = f"Do the nodes matter? {short_name(result.record['config']['persona'])}"
        sections.append((title, " ".join(describe_found(result)), shown, figures))
    return sections


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _configuration(record: dict[str, Any]) -> str:
    shown = {name: value for name, value in record["config"].items() if value is not None}
    lines = [f"{name}: {value}" for name, value in {**shown, **record["activations"], **record["versions"]}.items()]
    return "\n".join(lines)
