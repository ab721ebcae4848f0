"""What was not the same in several studies, and why that matters where they are compared."""

from collections.abc import Mapping

import pandas as pd

from utils.records import key_of
from utils.statements.contrasts import label_frame
from utils.statements.splits import split_parts
from utils.study.results import Study
from utils.viz.style import short_name

_SCAN = "p-values, precision and node sets come from another scan"
_POWER = "the power of the scan and the precision of a random choice are not the same"
# What is to be equal in all studies, in the order in which it is listed, and what follows where it is not.
_MATTERS = {
    "personas": "layers are chosen, p-values corrected and verdicts averaged over other personas",
    "statements": "results may differ because of the statements and not the model",
    "test part": "the same statements were split otherwise, so that results are from other statements",
    "test sizes": "more statements give narrower intervals, smaller p-values and larger backgrounds",
    "pairs": "sides are flipped and intervals made by pair in some studies, by statement in others",
    "contrast": "H0 is something else",
    "component": "activations are of another part of the block",
    "position": "activations are of another token",
    "role": "statements stood in another turn of the template",
    "layers": "depth is relative to the last layer that was extracted, which need not be the model's last",
    "model_dtype": "activations were rounded otherwise",
    "seed": "the test part and all else that is drawn are drawn otherwise",
    "permutations": "the smallest possible p-value of the scan is 1 / (1 + permutations)",
    "scan_layers": "p-values are corrected over another number of layers",
    "runs": "precision and node frequencies are means over other numbers of runs",
    **dict.fromkeys(("n_clean", "n_anomalous"), _POWER),
    "flips": "the smallest possible p-value of the separation test and of the calibrated scan is 1 / (1 + flips)",
    **dict.fromkeys(("scan", "score", "tail", "center", "alpha_max", "alphas", "restarts"), _SCAN),
    "threshold": "node sets hold nodes of another frequency",
    "personascope": "the program may have changed in between",
}
_OPTIONS = ("contrast", "seed", "permutations", "scan_layers", "runs", "n_clean", "n_anomalous", "flips", "scan")
_OPTIONS += ("score", "tail", "center", "alpha_max", "alphas", "restarts", "threshold")
_UNKNOWN = "not known"


def list_differences(studies: Mapping[str, Study]) -> pd.DataFrame:
    """Compare what studies were made from and with.

    Statements are compared by their texts, persona by persona, where at least two studies hold the persona. For
    studies that started from arrays, or whose activations were deleted, they are not known, which is listed as well.
    Models are expected to differ and are not listed; neither is anything on which results do not depend.

    Parameters
    ----------
    studies
        By name.

    Returns
    -------
    DataFrame
        ``option, study, value, matters``: for each option that differs, one row a study with its value as text, and what
        follows from the difference. Empty where nothing differs.
    """
    facts = {name: _describe(study) for name, study in studies.items()}
    for values in (_compare_personas(studies), _compare_statements(studies)):
        for option, by_study in values.items():
            for name in studies:
                facts[name][option] = by_study.get(name, "no difference")
    rows = [
        {"option": option, "study": name, "value": facts[name][option], "matters": matters}
        for option, matters in _MATTERS.items()
        if _differs(option, [own[option] for own in facts.values() if option in own])
        for name in studies
    ]
    return pd.DataFrame(rows, columns=["option", "study", "value", "matters"])


def _differs(option: str, values: list[str]) -> bool:
    if len(set(values)) > 1 or _UNKNOWN in values:
        return True
    # Layers that were chosen make depth doubtful even where all studies chose the same.
    return option == "layers" and values[0] != "all"


def _describe(study: Study) -> dict[str, str]:
    """The options of one study, as text."""
    config, made = study.config, study.record["activations"]
    facts = {option: _text(config.get(option, _UNKNOWN)) for option in _OPTIONS}
    facts |= {name: _text(made.get(name, _UNKNOWN)) for name in ("component", "role", "model_dtype")}
    position = made.get("position", _UNKNOWN)
    # Of several, the first is scanned; the others change nothing in what is compared.
    facts["position"] = position[0] if isinstance(position, list) else position
    layers = study.layers["layer"]
    kind = "of arrays" if config.get("activations") else "all" if config.get("layers") is None else "chosen"
    # The last layer is another one in every model: only what was chosen is a difference.
    facts["layers"] = kind if kind == "all" else f"{kind}, {layers.nunique()} from {layers.min()} to {layers.max()}"
    facts["personascope"] = _text(study.record["versions"].get("personascope", _UNKNOWN))
    return facts


def _compare_personas(studies: Mapping[str, Study]) -> dict[str, dict[str, str]]:
    every = list(dict.fromkeys(persona for study in studies.values() for persona in study.personas))
    values = {}
    for name, study in studies.items():
        lost = [short_name(persona) for persona in every if persona not in study.personas]
        values[name] = f"{len(study.personas)}, without {', '.join(lost)}" if lost else f"all {len(every)}"
    return {"personas": values}


def _compare_statements(studies: Mapping[str, Study]) -> dict[str, dict[str, str]]:
    """By aspect and study, what it has for those shared personas for which the aspect is not the same in all studies."""
    table = pd.concat([_list_statements(study).assign(study=name) for name, study in studies.items()])
    table = table[table.duplicated("persona", keep=False)]
    found = {}
    for aspect, describe in (
        ("statements", _describe_texts),
        ("test part", _describe_texts),
        ("test sizes", _describe_sizes),
        ("pairs", lambda rows, aspect: " and ".join(rows[aspect].unique())),
    ):
        by_persona = table.groupby("persona")[aspect]
        unlike = by_persona.transform("nunique") > 1
        if aspect in ("statements", "test part"):
            unlike |= by_persona.transform(lambda digests: digests.eq(_UNKNOWN).any())
        if aspect == "test part":
            # Other statements are in other parts anyway.
            unlike &= table.groupby("persona")["statements"].transform("nunique") == 1
            unlike &= table["statements"] != _UNKNOWN
        if unlike.any():
            by_study = table[unlike].groupby("study", sort=False)
            found[aspect] = {str(name): describe(rows, aspect) for name, rows in by_study}
    return found


def _list_statements(study: Study) -> pd.DataFrame:
    """One row a persona: digests of its statements and of those in the test part, and the sizes of the latter."""
    sizes = pd.DataFrame(study.record["sizes"])
    table = pd.DataFrame(
        {
            "persona": sizes["persona"],
            "test sizes": [f"{h1}+{h0}" for h1, h0 in zip(sizes["test_h1"], sizes["test_h0"], strict=True)],
            "pairs": sizes["paired"].map({True: "paired", False: "not paired"}),
            "h1": sizes["test_h1"],
            "h0": sizes["test_h0"],
        }
    )
    texts = _read_texts(study)
    for aspect, part in (("statements", None), ("test part", "test")):
        chosen = texts if part is None or texts is None else texts[texts["part"] == part]
        own = [None if chosen is None else chosen[chosen["persona"] == persona] for persona in table["persona"]]
        table[aspect] = [_UNKNOWN if rows is None else key_of(sorted(rows["text"])) for rows in own]
        table[f"n {aspect}"] = [0 if rows is None else len(rows) for rows in own]
    return table


def _read_texts(study: Study) -> pd.DataFrame | None:
    """Every statement with its persona, side and part; None where the study keeps no texts."""
    if not study.record["has_texts"]:
        return None
    try:
        acts = study.activations
    except (FileNotFoundError, ValueError):
        return None
    frame = label_frame(acts)
    text = frame["direction"] + ": " + acts["text"].to_numpy()
    return frame.assign(text=text, part=split_parts(acts, rng=study.config["seed"]))


def _describe_texts(rows: pd.DataFrame, aspect: str) -> str:
    if (rows[aspect] == _UNKNOWN).any():
        return _UNKNOWN
    content = key_of(sorted(rows[aspect]))[:6]
    return f"{rows[f'n {aspect}'].sum()} of {len(rows)} shared personas, content {content}"


def _describe_sizes(rows: pd.DataFrame, _aspect: str) -> str:
    return ", ".join(
        f"{name.upper()} {rows[name].min()}" + (f"–{rows[name].max()}" if rows[name].nunique() > 1 else "")
        for name in ("h1", "h0")
    )


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
