"""The report of a study, one HTML file with everything inline: what it says in words, its tables and figures."""

import logging
from collections.abc import Iterator
from typing import Any

import pandas as pd

from utils.intervals import LEVEL
from utils.records import replace_text
from utils.statements.contrasts import label_frame
from utils.study.figures import list_figures
from utils.study.results import Study, key_of_study
from utils.study.summary import (
    describe_personas,
    lead_sentence,
    list_warnings,
    result_table,
    span,
    summarise_study,
)
from utils.viz.live import embed_figures, layer_figure, map_figure
from utils.viz.pages import NUMBERS, Section, read_section, render_page, table_html
from utils.viz.style import short_name

logger = logging.getLogger(__name__)

# The tables behind each section.
_FILES = {
    "Personas": ("detection", "localization", "onset", "form", "power"),
    "Layers": ("layers", "layer_stability", "thirds", "topics", "maps"),
    "Scan": ("detection", "paper"),
    "Nodes": ("nodes", "agreement", "recurrence", "selectors", "node_stability"),
    "Overlap": ("overlap",),
}
_GLOSSARY = {
    "H1, H0": "The statements a persona would make, and those it would not (with one-vs-rest: those of the other "
    "personas of its topic).",
    "Layer k": "The residual stream after block k, before the final norm; layer 0 is what enters the first block.",
    "Pair accuracy": "Share of the pairs of which a rule that was fitted to all other pairs knows the persona's statement; 0.5 "
    "is chance.",
    "Effect: tiny, small, medium, large": "By pair accuracy, up to 0.58, 0.69, 0.79 and above: where the mean "
    "difference within pairs is 0.2, 0.5 and 0.8 standard deviations of a normal distribution, Cohen's bounds.",
    "Form": "Length, punctuation and function words of a statement, without its meaning; what they alone tell is the "
    "baseline.",
    "Flipped sides": "The two statements of each pair exchanged at random: what a test or a scan gives where there is no "
    "persona.",
    "p, adjusted p": "Share of flips that give at least as much, (1 + number) / (1 + flips); adjusted over the personas "
    "(Benjamini–Hochberg).",
    "Separation": "The test that belongs to pair accuracy: do the differences within pairs point one way?",
    "Subset scan; bj, hc, ks": "DeepScan's search for records and nodes that are unusual together, by the score "
    "of Berk and Jones, Higher Criticism or Kolmogorov and Smirnov.",
    "Calibrated scan": "A scan over the tests of single nodes whose scores are calibrated by flips, so that correlated nodes do "
    "not mislead it.",
    "Node set": "Nodes with their side that most runs select, and more often than flips do; null set: what the same rule "
    "gives under flips.",
    "Onset": "First layer with 90 % of a persona's largest gain in pair accuracy over chance, where it is told apart at "
    "all.",
}


def write_report(study: Study) -> None:
    """Write ``report.html`` into the study folder; figures must have been drawn."""
    sections = []
    abouts = {
        "Personas": about_personas,
        "Layers": about_layers,
        "Scan": about_scan,
        "Nodes": about_nodes,
        "Overlap": about_overlap,
    }
    entries = list(list_figures(study))
    head, live = _embed_live(study)
    for title, describe in abouts.items():
        about, table = describe(study)
        drawn = [entry for entry in entries if entry.section == title]
        figures = [(study.folder / "figures" / f"{entry.name}.png", entry.caption) for entry in drawn]
        shown = "" if table is None else table_html(table, **NUMBERS)
        files = [f"{name}.parquet" for name in _FILES[title] if (study.folder / f"{name}.parquet").exists()]
        sections.append(
            Section(title, about, shown, figures, files=files, unfolded=title == "Personas", live=live.get(title, ""))
        )
    model = study.record["activations"]["model"]
    html = render_page(
        model,
        f"Personas in {model}",
        [*sections, *_added_sections(study)],
        folder=study.folder,
        lead=[lead_sentence(study)],
        findings=describe_personas(study),
        summary=summarise_study(study),
        warnings=list_warnings(study),
        glossary=_GLOSSARY,
        configuration=_configuration(study.record),
        head=head,
    )
    replace_text(study.folder / "report.html", html)


def _embed_live(study: Study) -> tuple[str, dict[str, str]]:
    """What the page needs once, and by section the figures that answer to the reader."""
    drawn = {"Personas": layer_figure(study.localization, position=study.position, mark=study.best_layer)}
    if study.maps is not None:
        frame = label_frame(study.activations)
        texts = study.activations["text"].to_numpy() if study.record["has_texts"] else frame["id"]
        drawn["Layers"] = map_figure(study.maps, frame.assign(text=texts), layer=study.best_layer)
    head, parts = embed_figures(list(drawn.values()))
    return head, dict(zip(drawn, parts, strict=True))


def _added_sections(study: Study) -> Iterator[Section]:
    """What other runs on the study wrote for its report, such as a causal check of a persona's nodes."""
    for path in sorted(study.folder.glob("*/*/section.json")):
        try:
            section, held = read_section(path)
        except (ValueError, KeyError, OSError):
            logger.warning("%s is damaged and left out; remove it, or make it again", path)
            continue
        if held["study"] == key_of_study(study):
            yield section
        else:
            logger.warning("%s is of an earlier state of the study and left out; make it again", path.parent)


def _configuration(record: dict[str, Any]) -> str:
    shown = {name: value for name, value in record["config"].items() if value is not None}
    lines = [f"{name}: {value}" for name, value in {**shown, **record["activations"], **record["versions"]}.items()]
    return "\n".join(lines)


def about_personas(study: Study) -> tuple[str, pd.DataFrame]:
    """How the first section is read, and its table."""
    about = (
        "Accuracy: the share of pairs of which a ridge rule, fitted to all other pairs at the chosen layer, knows "
        "which statement "
        "is the persona's; 0.5 is chance. Separation: the test that belongs to it. Calibrated: a scan for few or "
        "many nodes whose "
        "scores are calibrated by flipped sides. Scan: the subset scan. Family and bh: nodes that a test at each "
        "node finds, family-wise "
        "and with 5 % false ones. Onset: the first layer with 90 % of the largest gain, where the persona is told apart at all. "
        f"{_describe_stability(study)}"
    )
    table = result_table(study)
    table["accuracy"] = [
        f"{value:.3f} ({low:.3f} to {high:.3f})"
        for value, low, high in zip(table["accuracy"], table["accuracy low"], table["accuracy high"], strict=True)
    ]
    return about, table.drop(columns=["accuracy low", "accuracy high"])


def about_layers(study: Study) -> tuple[str, pd.DataFrame]:
    """How the layers section is read, and its table."""
    about = (
        "The metrics of the paper at the chosen layer, from raw activations: they compare the sides as if they were "
        "unrelated, so that "
        "what partners share counts as spread. Silhouette: 0 is no clustering. Probe AUROC: 0.5 is chance."
        f"{_describe_topics(study)}"
    )
    own = study.layers[study.layers["layer"] == study.best_layer]
    table = pd.DataFrame({"persona": own["persona"].map(short_name)})
    for name in ("silhouette", "centroid_distance", "probe_auroc"):
        bounds = zip(own[name], own[f"{name}_low"], own[f"{name}_high"], strict=True)
        table[name.replace("_", " ")] = [f"{value:.4f} ({low:.4f} to {high:.4f})" for value, low, high in bounds]
    return about, table


def _describe_stability(study: Study) -> str:
    shares = study.layer_stability.set_index("layer")["share"].sort_values(ascending=False, kind="stable")
    others = ", ".join(f"{layer} ({share:.0%})" for layer, share in shares.head(3).items() if share > 0)
    own = shares.get(study.best_layer, 0.0)
    return (
        f"Of 200 resamples of the select part, {own:.0%} pick layer {study.best_layer} by the same rule; "
        f"most often picked: {others}."
    )


def _describe_topics(study: Study) -> str:
    if study.topics is None:
        return ""
    rows = study.topics[study.topics["layer"] == study.best_layer]
    columns = [
        rows[name] for name in ("topic", "probe_accuracy", "probe_accuracy_low", "probe_accuracy_high", "chance")
    ]
    shown = [
        f"{topic} {value:.2f} ({low:.2f} to {high:.2f}; chance {chance:.2f})"
        for topic, value, low, high, chance in zip(*columns, strict=True)
    ]
    return (
        " Accuracy of a linear probe at this layer in telling to which persona of its topic a positive statement belongs: "
        f"{', '.join(shown)}."
    )


def about_scan(study: Study) -> tuple[str, pd.DataFrame]:
    """How the scan section is read, and its table."""
    config = study.config
    h0 = "their negative statements" if config["contrast"] == "direction" else "the other personas of the topic"
    columns = [
        "persona",
        "layer",
        "p_value",
        "p_adjusted",
        "score",
        "null_score",
        "precision",
        "recall",
        "alpha",
        "n_records",
        "n_nodes",
    ]
    columns += ["n_background", "n_clean", "n_anomalous"] + (["auroc"] if config["scan"] == "individual" else [])
    about = (
        f"{config['runs']} runs a persona, each with a fresh split: {config['n_clean']} clean and {config['n_anomalous']} "
        f"anomalous records against a background of {h0}; score {config['score']}, {_describe_scan(study)}. The p-value "
        "compares the mean score with that of all runs after flipping sides; adjusted: over the personas."
    )
    if study.paper is not None:
        paper = study.paper
        about += (
            f" By the paper's protocol (descriptive: a fixed background, {span(paper['n_anomalous'])} anomalous "
            f"records, Higher Criticism "
            f"on lower left-tail p-values, the union of 100 runs), sets hold {span(paper['union_nodes'])} nodes, and "
            f"{span(paper['clean_union_nodes'])} where clean records are scanned alone."
        )
    table = study.detection[columns]
    return about, table.assign(persona=table["persona"].map(short_name)).rename(
        columns=lambda name: name.replace("_", " ")
    )


def _describe_scan(study: Study) -> str:
    """What was scanned: pair-centred or raw activations, and the tail, as these were resolved."""
    config = next(iter(study.runs.values())).config
    if config.get("center") == "pairs":
        return f"pair-centred activations, {config['tail']} p-values; precision and recall are given the partner"
    return f"raw activations, {config['tail']} p-values"


def about_nodes(study: Study) -> tuple[str, pd.DataFrame]:
    """How the nodes section is read, and its table."""
    about = (
        f"A node set holds the nodes that at least {study.config['threshold']:.0%} of the runs selected, and more often than "
        "flipped sides select them (p ≤ 0.05, node by node: the null node set is what this gives "
        f"without an effect). {_describe_corrected(study)} "
        f"{_describe_rules(study)} Below, each set is compared with equally large ones by simpler "
        "methods on the same statements (Jaccard over node and side; in brackets what flipped sides give); t-test nodes: how "
        "many a t-test at each node finds (adjusted p ≤ 0.05)."
    )
    compared = study.selectors
    cells = [
        f"{jaccard:.2f} ({expected:.2f})"
        for jaccard, expected in zip(compared["jaccard"], compared["expected_jaccard"], strict=True)
    ]
    wide = compared.assign(cell=cells).pivot(index="persona", columns="method", values="cell")
    first = compared.drop_duplicates("persona").set_index("persona")
    table = (
        first[["size", "n_significant"]]
        .join(wide)
        .rename(columns={"size": "node set", "n_significant": "t-test nodes"})
    )
    if study.node_stability is not None:
        about += (
            " Stability: Jaccard of the twenty nodes that either of two disjoint halves of the pairs selects most often, "
            "beside what flipped sides give."
        )
        halves = study.node_stability.set_index("persona")
        table = table.join(
            halves[["jaccard", "expected_jaccard", "p_adjusted"]].rename(
                columns={"jaccard": "stability", "expected_jaccard": "under flips", "p_adjusted": "its adjusted p"}
            )
        )
    table = table.reset_index()
    return about, table.assign(persona=table["persona"].map(short_name))


def _describe_corrected(study: Study) -> str:
    """How many nodes of the sets remain after correction over all nodes."""
    sizes = study.detection.set_index("persona")[["node_set", "node_set_corrected"]]
    least, most = sizes["node_set_corrected"].min(), sizes["node_set_corrected"].max()
    return (
        f"Corrected over all nodes (q ≤ 0.05, the false discovery rate under flips; q_value in nodes.parquet), {least} to {most} "
        f"of the {sizes['node_set'].min()} to {sizes['node_set'].max()} nodes a persona remain."
    )


def _describe_rules(study: Study) -> str:
    """How far the sets by different rules agree, and whether they recur over halves."""
    agreement = study.agreement
    pairs = (
        (("scan", "bh"), "the scan's and those of the test"),
        (("bh", "calibrated"), "those of the test and of the calibrated scan"),
    )
    shown = []
    for (a, b), label in pairs:
        own = agreement[(agreement["a"] == a) & (agreement["b"] == b)]["jaccard"]
        shown.append(f"{label} have a mean Jaccard index of {own.mean():.2f}")
    own = study.recurrence[(study.recurrence["rule"] == "bh") & (study.recurrence["size"] > 0)]
    return (
        f"Of the node sets, {', '.join(shown)}. Over disjoint halves of the pairs, the sets of the test (5 % false "
        f"nodes) recur more than "
        f"flipped sides make them for {(own['p_adjusted'] <= LEVEL).sum()} of the {len(own)} personas that have any (adjusted)."
    )


def about_overlap(study: Study) -> tuple[str, pd.DataFrame | None]:
    """How the overlap section is read, and its table, if there are pairs of sets."""
    about = (
        "Node sets are compared as (node, side): two personas that move a node in opposite directions do not share it "
        "(they are counted as opposite). Expected: what both scans give with flipped sides, by the same rule. "
        "Cosine: of the two personas' vectors of differences over all nodes; its p-value flips the sides of both."
    )
    table = study.overlap
    if table.empty:
        return about, None
    table = table.sort_values("jaccard", ascending=False).head(12)
    columns = [
        "a",
        "b",
        "size_a",
        "size_b",
        "shared",
        "opposite",
        "jaccard",
        "expected_jaccard",
        "p_adjusted",
        "cosine",
        "cosine_p_adjusted",
    ]
    names = {"a": table["a"].map(short_name), "b": table["b"].map(short_name)}
    return about + " The twelve largest:", table[columns].assign(**names).rename(
        columns=lambda name: name.replace("_", " ")
    )
