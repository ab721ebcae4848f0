"""What a study found: one table, and a few sentences; p-values count after correction everywhere."""

import pandas as pd
from scipy.stats import norm

from utils.intervals import LEVEL
from utils.statements.form import FORM_LIMIT
from utils.statements.names import short_name
from utils.study.power import describe_power
from utils.study.results import Study

_SCANS = {"the subset scan": "scan", "the calibrated scan": "calibrated"}


def result_table(study: Study) -> pd.DataFrame:
    """One row a persona: the numbers that sum the study up, with readable column names."""
    found = study.detection[study.detection["layer"] == study.best_layer]
    names = ["separation_p_adjusted", "calibrated_p_adjusted", "p_adjusted", "n_family", "n_bh", "node_set"]
    table = found[["persona", "accuracy", "accuracy_low", "accuracy_high", *names]]
    onset = study.onset[study.onset["position"] == study.position]
    told = onset.assign(onset=onset["onset"].where(onset["p_adjusted"] <= LEVEL))
    table = table.merge(told[["persona", "onset"]], on="persona")
    if study.record["has_texts"]:
        table = table.merge(study.form[["persona", "form_accuracy"]], on="persona")
    table = table.assign(persona=table["persona"].map(short_name))
    return table.rename(columns={"p_adjusted": "scan_p_adjusted"}).rename(columns=lambda name: name.replace("_", " "))


def lead_sentence(study: Study) -> str:
    """How many personas the study found, by the test that comes first."""
    table = study.detection[study.detection["layer"] == study.best_layer].set_index("persona")
    lead = _count(f"At layer {study.best_layer}, the two sides are told apart for", table, "separation_p_adjusted")
    return f"{lead} Persona by persona, from the one that is read best:"


def describe_personas(study: Study) -> list[tuple[str, str]]:
    """What was found of each persona, by name and in a sentence, from the highest pair accuracy down."""
    table = result_table(study).sort_values(["accuracy", "persona"], ascending=[False, True])
    described = []
    for row in table.to_dict("records"):
        p_value = row["separation p adjusted"]
        told = "told apart" if p_value <= LEVEL else "not told apart"
        parts = [
            f"{told} (adjusted p = {p_value:.2g}), {_size_in_words(row['accuracy'])} effect: accuracy {row['accuracy']:.2f} "
            f"({row['accuracy low']:.2f} to {row['accuracy high']:.2f})"
        ]
        if study.record["has_texts"]:
            parts.append(f"form alone {row['form accuracy']:.2f}")
        if pd.notna(row["onset"]):
            parts.append(f"from layer {row['onset']:.0f}")
        found = [name for name, key in _SCANS.items() if row[f"{key} p adjusted"] <= LEVEL]
        parts.append(f"found by {' and '.join(found)}" if found else "found by no scan")
        parts.append(f"{row['n bh']} nodes with 5 % false ones" if row["n bh"] else "no single node")
        described.append((row["persona"], "; ".join(parts) + "."))
    return described


def _size_in_words(accuracy: float) -> str:
    """An effect by pair accuracy: Cohen's bounds 0.2, 0.5 and 0.8 of a normal difference are accuracies of Φ(d)."""
    bounds = {0.2: "a tiny", 0.5: "a small", 0.8: "a medium"}
    return next((word for size, word in bounds.items() if accuracy <= norm.cdf(size)), "a large")


def summarise_study(study: Study) -> list[str]:
    """What the study found, a sentence or two a stage: separation, form, onset, scan and nodes, power."""
    table = study.detection[study.detection["layer"] == study.best_layer].set_index("persona")
    sizes = pd.DataFrame(study.record["sizes"])
    unit = "pairs" if sizes["paired"].all() else "H1 statements"
    sentences = [
        f"Layer {study.best_layer} of {study.record['n_layers']} was chosen on the select part "
        f"({span(sizes['select_h1'])} {unit} a "
        f"persona): it has the best mean rank of pair accuracy over personas. Everything below is from the test part "
        f"({span(sizes['test_h1'])} {unit} a persona), and every p-value is adjusted (Benjamini–Hochberg over personas).",
        f"Pair accuracy, leave-one-out, is {table['accuracy'].min():.2f} to {table['accuracy'].max():.2f} (0.5 is chance)"
        + (
            f"; the form of the statements alone gives {study.form['form_accuracy'].min():.2f} to "
            f"{study.form['form_accuracy'].max():.2f}."
            if study.record["has_texts"]
            else "."
        ),
        *_describe_onset(study),
        _count("The subset scan finds", table, "p_adjusted")
        + " "
        + _count(
            "The calibrated scan, which takes the correlation of the nodes into account, finds",
            table,
            "calibrated_p_adjusted",
        ),
        f"Node by node, a test finds {span(table['n_family'])} nodes a persona without a false one in 95 % of the cases, and "
        f"{span(table['n_bh'])} with 5 % false ones.",
    ]
    power = "" if study.power is None else describe_power(study.power, paired=bool(sizes["paired"].all()))
    return [*sentences, *filter(None, [power]), _judge_thirds(study)]


def _count(text: str, table: pd.DataFrame, column: str) -> str:
    """How many of the personas a test finds, and which it does not."""
    lost = [short_name(name) for name in table.index[table[column] > LEVEL]]
    n = len(table) - len(lost)
    rest = "" if not lost or not n else f"; not {', '.join(lost)}"
    return f"{text} {n} of {len(table)} personas (adjusted p ≤ {LEVEL}){rest}."


def _describe_onset(study: Study) -> list[str]:
    """Where the personas that are told apart begin to be, at each position."""
    sentences = []
    for position, own in study.onset.groupby("position", sort=False):
        told = own[own["p_adjusted"] <= LEVEL]
        where = {"last": "At the last token of the prompt", "mean": "In the mean over the statement's tokens"}
        start = where.get(str(position), "At the last token of the statement")
        if not len(told):
            sentences.append(f"{start}, no persona is told apart over the layers together.")
            continue
        sentences.append(
            f"{start}, {len(told)} of {len(own)} are told apart over the layers together; 90 % of the largest gain is "
            f"reached at layer {told['onset'].median():.0f} (median; {told['onset'].min():.0f} to "
            f"{told['onset'].max():.0f}; each with an "
            f"interval in the table)."
        )
    return sentences


def _judge_thirds(study: Study) -> str:
    """The answer to the claim that large differences lie only in the last third of the layers, in two parts."""
    claim = "Cintas et al. 2025 (arXiv 2505.24539) report large differences only within the last third of the layers"
    if study.thirds is None:
        return f"{claim}; that was not judged, as it takes every layer of the model, and at least three."
    model, n = study.record["thirds"], len(study.thirds)
    return (
        f"{claim}. Largest there? {str(model['verdict']).capitalize()}: the mean pair accuracy is "
        f"{model['first']:.3f} in the first third, "
        f"{model['middle']:.3f} in the middle and {model['last']:.3f} in the last (last minus the larger of the "
        f"others {model['d']:.4f}, "
        f"95 % interval {model['d_low']:.4f} to {model['d_high']:.4f}). There only? "
        f"{'No' if model['n_early'] else 'None found earlier'}: "
        f"{model['n_early']} of {n} personas are told apart in the first two thirds already (adjusted p ≤ {LEVEL})."
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
    sizes = pd.DataFrame(study.record["sizes"])
    if not sizes["paired"].all():
        warnings.append(
            "The statements have no pairs. Matched pairs, one statement of each side on the same subject, let every test compare "
            "within subjects, which finds far smaller differences."
        )
    if study.config["n_clean"] < 15:
        warnings.append(
            f"There are too few statements for the usual 15 + 15 records of a scan: {study.config['n_clean']} + "
            f"{study.config['n_anomalous']} were scanned in each run."
        )
    smallest = len(study.detection) / (1 + study.config["permutations"])
    if smallest > LEVEL:
        warnings.append(
            f"With {study.config['permutations']} permutations, a persona that is alone in being found cannot have an adjusted p "
            f"below {smallest:.2g}: give --permutations {round(len(study.detection) / LEVEL)} or more."
        )
    return warnings


def span(values: pd.Series) -> str:
    """The lowest and the highest value as one text."""
    return str(values.min()) if values.min() == values.max() else f"{values.min()}–{values.max()}"
