"""The report of a study, one HTML file with everything inline: what it says in words, its tables and figures."""

import logging
from collections.abc import Iterator
from typing import Any

import pandas as pd

from utils.records import replace_text
from utils.statements.form import FORM_LIMIT
from utils.study.figures import list_figures
from utils.study.results import Study, key_of_study
from utils.viz.pages import NUMBERS, Section, read_section, render_page, table_html
from utils.viz.style import short_name

logger = logging.getLogger(__name__)

# Adjusted p-values up to here count as found.
_LEVEL = 0.05


def write_report(study: Study) -> None:
    """Write ``report.html`` into the study folder; figures must have been drawn."""
    sections = []
    abouts = {"Layers": about_layers, "Scan": about_scan, "Nodes": about_nodes, "Overlap": about_overlap}
    entries = list(list_figures(study))
    for title, describe in abouts.items():
        about, table = describe(study)
        drawn = [entry for entry in entries if entry.section == title]
        figures = [(study.folder / "figures" / f"{entry.name}.png", entry.caption) for entry in drawn]
        sections.append(Section(title, about, "" if table is None else table_html(table, **NUMBERS), figures))
    model = study.record["activations"]["model"]
    html = render_page(
        model,
        f"Personas in {model}",
        [*sections, *_added_sections(study)],
        summary=summarise_study(study),
        warnings=list_warnings(study),
        configuration=_configuration(study.record),
    )
    replace_text(study.folder / "report.html", html)


def _added_sections(study: Study) -> Iterator[Section]:
    """What other runs on the study wrote for its report, such as a causal check of a persona's nodes."""
    for path in sorted(study.folder.glob("*/*/section.json")):
        section, held = read_section(path)
        if held["study"] == key_of_study(study):
            yield section
        else:
            logger.warning("%s is of an earlier state of the study and left out; make it again", path.parent)


def _configuration(record: dict[str, Any]) -> str:
    shown = {name: value for name, value in record["config"].items() if value is not None}
    lines = [f"{name}: {value}" for name, value in {**shown, **record["activations"], **record["versions"]}.items()]
    return "\n".join(lines)


def result_table(study: Study) -> pd.DataFrame:
    """One row a persona: the numbers that sum the study up, with readable column names."""
    at_best = study.layers[study.layers["layer"] == study.best_layer]
    layers = at_best[["persona", "silhouette", "silhouette_low", "silhouette_high", "probe_auroc"]]
    scans = study.detection[study.detection["layer"] == study.best_layer]
    scans = scans[["persona", "p_adjusted", "precision", "recall", "node_set", "null_node_set"]]
    table = layers.merge(scans, on="persona")
    if study.record["has_texts"]:
        table = table.merge(study.form[["persona", "form_accuracy"]], on="persona")
    return table.assign(persona=table["persona"].map(short_name)).rename(columns=lambda name: name.replace("_", " "))


def summarise_study(study: Study) -> list[str]:
    """What the study found, a sentence or two a stage."""
    detection = study.detection[study.detection["layer"] == study.best_layer]
    found = detection[detection["p_adjusted"] <= _LEVEL]["persona"].map(short_name).tolist()
    lost = detection[detection["p_adjusted"] > _LEVEL]["persona"].map(short_name).tolist()
    config, sizes = study.config, pd.DataFrame(study.record["sizes"])
    unit = "pairs" if sizes["paired"].all() else "H1 statements"
    sentences = [
        f"Layer {study.best_layer} of {study.record['n_layers']} was scanned for all personas: it has the best mean rank of the "
        f"silhouette over personas on the select part ({_range(sizes['select_h1'])} {unit} a persona). Everything below is from "
        f"the test part ({_range(sizes['test_h1'])} {unit} a persona).",
        f"At this layer the scan tells {len(found)} of {len(detection)} personas from their H0 "
        f"(permutation test, {config['permutations']} permutations, adjusted p ≤ {_LEVEL})"
        + (f": {', '.join(found)}." if found else "."),
    ]
    if found and lost:
        sentences.append(f"It does not for: {', '.join(lost)}.")
    return [*sentences, _judge_thirds(study)]


def _judge_thirds(study: Study) -> str:
    """The answer to the claim that personas lie furthest apart in the last third of the layers."""
    claim = (
        "Cintas et al. 2025 (arXiv 2505.24539) report that personas lie furthest apart in the last third of the layers"
    )
    if study.thirds is None:
        return f"{claim}; that was not judged, as it takes every layer of the model, and at least three."
    model, counts = study.record["thirds"], study.thirds["verdict"].value_counts()
    by_persona = ", ".join(f"{counts.get(name, 0)} {name}" for name in ("supported", "mixed", "not supported"))
    return (
        f"{claim}. Here: {model['verdict']} (silhouette, mean over personas: first third {model['first']:.3f}, middle "
        f"{model['middle']:.3f}, last {model['last']:.3f}; last minus the larger of the others {model['d']:.3f}, 95 % interval "
        f"{model['d_low']:.3f} to {model['d_high']:.3f}); persona by persona: {by_persona}. This is about where "
        "the sides lie furthest apart; whether they lie apart at all, the flipped sides tell."
    )


def list_warnings(study: Study) -> list[str]:
    """What a reader must know before the numbers: form that gives the side away, too few permutations."""
    warnings = []
    if study.record["has_texts"]:
        given = study.form[study.form["gives_away"]]["persona"].map(short_name).tolist()
        if given:
            warnings.append(
                f"The form of the statements (length, punctuation, function words) alone tells the sides apart at {FORM_LIMIT} "
                f"accuracy or better for: {', '.join(given)}. What is found for them may be form and not persona."
            )
    smallest = len(study.detection) / (1 + study.config["permutations"])
    if smallest > _LEVEL:
        warnings.append(
            f"With {study.config['permutations']} permutations, a persona that is alone in being found cannot have an adjusted p "
            f"below {smallest:.2g}: give --permutations {round(len(study.detection) / _LEVEL)} or more."
        )
    return warnings


def about_layers(study: Study) -> tuple[str, pd.DataFrame]:
    """How the layers section is read, and its table."""
    about = (
        "How far the two sides of each persona lie apart at the scanned layer, and how far form alone goes. Silhouette: "
        "0 is no clustering. Form accuracy and probe AUROC: 0.5 is chance. "
        f"{_describe_stability(study)}{_describe_topics(study)}"
    )
    table = result_table(study)
    interval = [
        f"{value:.3f} ({low:.3f} to {high:.3f})"
        for value, low, high in zip(table["silhouette"], table["silhouette low"], table["silhouette high"], strict=True)
    ]
    table["silhouette"] = interval
    return about, table.drop(columns=["silhouette low", "silhouette high"])


def _describe_stability(study: Study) -> str:
    shares = study.layer_stability.set_index("layer")["share"].sort_values(ascending=False, kind="stable")
    others = ", ".join(f"{layer} ({share:.0%})" for layer, share in shares.head(3).items() if share > 0)
    own = shares.get(study.best_layer, 0.0)
    return (
        f"Of 100 random halves of the select part, {own:.0%} pick layer {study.best_layer} by the same rule; "
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
        f"anomalous records against a background of {h0}; score {config['score']}, {config['tail']} p-values. The p-value "
        "compares the mean score with that of all runs after flipping sides."
    )
    table = study.detection[columns]
    return about, table.assign(persona=table["persona"].map(short_name)).rename(
        columns=lambda name: name.replace("_", " ")
    )


def about_nodes(study: Study) -> tuple[str, pd.DataFrame]:
    """How the nodes section is read, and its table."""
    about = (
        f"A node set holds the nodes that at least {study.config['threshold']:.0%} of the runs selected, and more often than "
        "flipped sides select them (p ≤ 0.05, node by node). The table of the layer section shows its size beside the "
        "mean size under flipped sides (null node set). Below, each set is compared with equally large ones by simpler "
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


def about_overlap(study: Study) -> tuple[str, pd.DataFrame | None]:
    """How the overlap section is read, and its table, if there are pairs of sets."""
    about = (
        "Node sets are compared as (node, side): two personas that move a node in opposite directions do not share it "
        "(they are counted as opposite). Expected: what both scans give with flipped sides, at the same set sizes."
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
        "hypergeometric",
    ]
    names = {"a": table["a"].map(short_name), "b": table["b"].map(short_name)}
    return about + " The twelve largest:", table[columns].assign(**names).rename(
        columns=lambda name: name.replace("_", " ")
    )


def _range(values: pd.Series) -> str:
    return str(values.min()) if values.min() == values.max() else f"{values.min()}–{values.max()}"
