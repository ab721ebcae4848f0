import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

import utils.study.report
from utils.records import replace_text, write_frame
from utils.statements.form import FORM_LIMIT
from utils.study.report import write_report
from utils.study.results import Study, open_study
from utils.study.run import run_study
from utils.study.settings import StudyConfig
from utils.study.summary import result_table

NASTY = "<script>alert(1)<script>"
VERDICTS = ("supported", "not supported")


def parse(text):
    """Tags with their attributes, and the text outside of style sheets."""
    tags, texts, opened = [], [], []

    def start(tag, attrs):
        tags.append((tag, dict(attrs)))
        opened.append(tag)

    def end(tag):
        while tag in opened and opened.pop() != tag:
            pass

    parser = HTMLParser()
    parser.handle_starttag, parser.handle_endtag = start, end
    parser.handle_data = lambda data: texts.append(data) if not {"style", "script"} & set(opened) else None
    parser.feed(text)
    return SimpleNamespace(tags=tags, text=re.sub(r"\s+", " ", " ".join(texts)))


def find_addresses(page):
    """Every address that a browser would follow or load."""
    names = ("src", "href", "srcset", "data", "action", "poster")
    return [attrs[name] for _, attrs in page.tags for name in names if name in attrs]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two personas, one with a strong effect; ``beta`` has a name that is HTML."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    (root / "in").mkdir()
    for persona in ("alpha", NASTY):
        for direction in ("positive", "negative"):
            values = rng.normal(size=(24, 10)).astype(np.float32)
            if (persona, direction) == ("alpha", "positive"):
                values[:, :3] += 4
            np.save(root / "in" / f"{persona}_{direction}.npy", values)
    config = StudyConfig(
        activations=str(root / "in"), runs=3, permutations=39, n_clean=4, n_anomalous=4, alphas=10, jobs=1
    )
    return run_study(root / "out", config, progress=False)


@pytest.fixture
def altered(study, tmp_path, monkeypatch):
    """Writes the report of the study with other tables or other facts, and reads it back."""
    monkeypatch.setattr(utils.study.report, "list_figures", lambda study: [])

    def write(*, record=None, config=None, **tables):
        shutil.copytree(study.folder / "scans", tmp_path / "scans", dirs_exist_ok=True)
        names = ("layers", "layer_stability", "onset", "detection", "overlap", "nodes", "selectors")
        for name in (*names, "agreement", "recurrence", "localization"):
            write_frame(tmp_path / f"{name}.parquet", tables.pop(name, getattr(study, name)))
        for name, table in tables.items():
            write_frame(tmp_path / f"{name}.parquet", table)
        facts = study.record | (record or {}) | {"config": study.config | (config or {})}
        write_report(replace(study, folder=tmp_path, record=facts))
        return parse((tmp_path / "report.html").read_text())

    return write


def read_page(study):
    return parse((study.folder / "report.html").read_text(encoding="utf-8"))


def test_everything_is_inline(study):
    page = read_page(study)
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    # What is linked and not loaded is a place of the page, or a file beside it.
    anchors = {f"#{attrs['id']}" for tag, attrs in page.tags if "id" in attrs and tag != "div"}
    links = {attrs["href"] for _, attrs in page.tags if "href" in attrs}
    assert set(find_addresses(page)) == links | set(sources)
    assert anchors <= links
    assert all(link in anchors or (study.folder / unquote(link)).is_file() for link in links)
    assert {"detection.parquet", "figures/tests.svg"} <= links
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base"}
    # Scripts may name addresses; that none is asked for is seen in a browser (tests/utils/viz/test_live.py).
    text = re.sub(r"<script.*?</script>", "", (study.folder / "report.html").read_text(), flags=re.DOTALL)
    assert not re.findall(r"https?://|url\(|@import|file:", re.sub(r"base64,[^\"]*", "", text))


def test_every_figure_is_in_it(study):
    page = read_page(study)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == len(list((study.folder / "figures").glob("*.png")))
    assert all(attrs["alt"] for attrs in images)
    captions = re.findall("<figcaption>(.*?)</figcaption>", (study.folder / "report.html").read_text())
    assert len(captions) == len(images)
    assert all(len(caption) > 20 for caption in captions)
    assert len({attrs["src"] for attrs in images}) == len(images)


def test_names_are_escaped(study):
    text = (study.folder / "report.html").read_text()
    assert NASTY not in text
    assert "&lt;script&gt;alert(1)" in text
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, flags=re.DOTALL)
    assert not [script for script in scripts if script.startswith("alert")]
    assert NASTY in read_page(study).text  # read as text, it is there


def test_states_the_layer_and_how_many_are_detected(study):
    text = read_page(study).text
    assert f"Layer {study.best_layer} of 1 was chosen" in text
    assert f"the two sides are told apart for 1 of 2 personas (adjusted p ≤ 0.05); not {NASTY}." in text
    assert "The subset scan finds 1 of 2 personas" in text
    assert "6 H1 statements a persona" in text
    assert "18 H1 statements a persona" in text


@pytest.mark.parametrize(("adjusted", "count"), [([0.01, 0.02], 2), ([0.5, 0.6], 0)])
def test_counts_the_adjusted_p_values(study, altered, adjusted, count):
    changed = dict.fromkeys(("p_adjusted", "separation_p_adjusted", "calibrated_p_adjusted"), adjusted)
    unadjusted = dict.fromkeys(("p_value", "separation_p", "calibrated_p"), 0.001)
    text = altered(detection=study.detection.assign(**changed, **unadjusted)).text
    assert f"told apart for {count} of 2 personas" in text
    assert f"The subset scan finds {count} of 2 personas" in text
    assert "; not " not in text


def test_few_statements_without_pairs_are_said_to_be_so(study):
    warnings = " ".join(warnings_of(study.folder))
    assert "The statements have no pairs" in warnings
    assert "4 + 4 were scanned in each run" in warnings


def test_has_the_sections_and_the_configuration(study):
    page = read_page(study)
    headings = re.findall(r"<h2.*?>(.*?)</h2>", (study.folder / "report.html").read_text())
    assert headings == ["In words", "Personas", "Layers", "Scan", "Nodes", "Overlap", "Glossary", "Configuration"]
    for line in ("permutations: 39", "seed: 0", "tail: auto", f"model: {study.record['activations']['model']}"):
        assert line in page.text
    assert "offensive" in page.text


def test_the_first_screen_tells_of_each_persona_what_was_found(study, altered):
    """Before the contents, the persona that is read best first; the one without an effect is there, too."""
    text = (study.folder / "report.html").read_text()
    first = parse(text[: text.index("<nav")]).text
    row = study.detection.set_index("persona").loc["alpha"]
    assert f"alpha : told apart (adjusted p = {row['separation_p_adjusted']:.2g}), a large effect" in first
    assert f"accuracy {row['accuracy']:.2f} ({row['accuracy_low']:.2f} to {row['accuracy_high']:.2f})" in first
    assert first.index("alpha :") < first.index(f"{NASTY} : not told apart")
    assert "found by no scan" in first
    assert "form alone" not in first
    assert "form alone 0.52" in altered(record={"has_texts": True}, form=form_of(study, [0.5, 0.52])).text


@pytest.mark.parametrize("seed", range(3))
def test_effects_are_named_by_what_a_normal_difference_would_be(altered, study, seed):
    """Accuracies that normal differences of known size have, drawn; Cohen's words belong to these sizes."""
    draws = np.random.default_rng(seed).normal(size=200_000)
    sizes = [(draws + size > 0).mean() for size in (0.15, 0.45)]
    words = re.findall("a (tiny|small) effect", altered(detection=study.detection.assign(accuracy=sizes)).text)
    assert words == ["small", "tiny"]
    sizes = [(draws + size > 0).mean() for size in (0.75, 0.85)]
    words = re.findall("a (medium|large) effect", altered(detection=study.detection.assign(accuracy=sizes)).text)
    assert words == ["large", "medium"]


def form_of(study, accuracies):
    rows = [
        {"persona": persona, "form_accuracy": accuracy, "gives_away": accuracy >= FORM_LIMIT}
        for persona, accuracy in zip(study.personas, accuracies, strict=True)
    ]
    return pd.DataFrame(rows)


def warnings_of(folder):
    return re.findall(r'<p class="warn">(.*?)</p>', (folder / "report.html").read_text(), flags=re.DOTALL)


def test_warns_when_form_gives_the_sides_away(study, altered, tmp_path):
    altered(record={"has_texts": True}, form=form_of(study, [0.5, 0.9]))
    (warning,) = [text for text in warnings_of(tmp_path) if "form" in text]
    given = study.personas[1]
    other = study.personas[0]
    assert given.replace("<", "&lt;").replace(">", "&gt;") in warning
    assert other.replace("<", "&lt;").replace(">", "&gt;") + "," not in warning


def test_does_not_warn_when_form_gives_nothing_away(study, altered, tmp_path):
    page = altered(record={"has_texts": True}, form=form_of(study, [0.5, 0.61]))
    assert not [text for text in warnings_of(tmp_path) if "form of the statements" in text]
    assert "form accuracy" in page.text


@pytest.mark.parametrize(("permutations", "warned"), [(19, True), (38, True), (39, False), (999, False)])
def test_says_when_too_few_permutations_were_made_to_find_one_persona_alone(altered, tmp_path, permutations, warned):
    """The smallest p-value, 1 / (1 + permutations), is doubled by the correction over two personas."""
    altered(config={"permutations": permutations})
    warnings = [text for text in warnings_of(tmp_path) if "--permutations" in text]
    assert len(warnings) == warned
    if warned:
        advised = int(re.search(r"give --permutations (\d+)", warnings[0])[1])
        assert 2 / (1 + advised) <= 0.05
        assert f"below {2 / (1 + permutations):.2g}" in warnings[0]


def test_one_persona_has_nothing_to_overlap(study, altered):
    page = altered(overlap=pd.DataFrame())
    assert "The twelve largest" not in page.text
    assert "The twelve largest" in altered().text


def test_individual_scans_show_their_auroc(altered):
    assert "auroc" in altered(config={"scan": "individual"}).text
    assert "auroc" not in altered(config={"scan": "group"}).text.replace("probe auroc", "")


def test_the_number_of_files_is_the_study_alone(study):
    """Figures of an earlier run with other sets are removed, so that the folder shows one study."""
    stale = study.folder / "figures" / "venn_of-another-study.png"
    stale.write_bytes(b"")
    (study.folder / "figures" / "notes.txt").write_text("mine")
    utils.study.figures.draw_figures(study)
    assert not stale.exists()
    assert (study.folder / "figures" / "notes.txt").exists()


def test_result_table_has_the_numbers_of_the_study(study):
    table = result_table(study).set_index("persona")
    assert list(table.index) == study.personas
    row = study.detection.set_index("persona").loc["alpha"]
    assert table.loc["alpha", "scan p adjusted"] == row["p_adjusted"]
    assert table.loc["alpha", "separation p adjusted"] == row["separation_p_adjusted"]
    assert table.loc["alpha", "node set"] == len(study.node_sets["alpha"])
    assert table.loc["alpha", "accuracy"] == row["accuracy"]
    assert "form accuracy" not in table


def test_a_study_opens_from_its_folder(study):
    again = open_study(study.folder)
    assert isinstance(again, Study)
    assert again.record == study.record
    pd.testing.assert_frame_equal(again.detection, study.detection)


def test_text_is_replaced_whole(tmp_path):
    path = tmp_path / "page.html"
    replace_text(path, "é")
    replace_text(path, "ü")
    assert path.read_text(encoding="utf-8") == "ü"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_thirds_that_could_not_be_judged_are_not_made_up(study):
    assert study.thirds is None
    assert "that was not judged, as it takes every layer" in read_page(study).text


def test_the_verdict_on_the_thirds_is_stated_with_its_numbers(altered):
    rows = [
        {"persona": name, "topic": "t", "d": 0.02, "verdict": verdict, "metric": "accuracy"}
        for name, verdict in zip("ab", VERDICTS, strict=True)
    ]
    model = {
        "first": 0.01,
        "middle": 0.02,
        "last": 0.041,
        "d": 0.021,
        "d_low": -0.004,
        "d_high": 0.046,
        "verdict": "mixed",
        "n_early": 1,
    }
    text = altered(thirds=pd.DataFrame(rows), record={"thirds": model}).text
    assert (
        "Largest there? Mixed: the mean pair accuracy is 0.010 in the first third, 0.020 in the middle and 0.041"
        in text
    )
    assert "95 % interval -0.0040 to 0.0460). There only? No: 1 of 2 personas are told apart in the first two" in text


def test_how_firmly_the_layer_was_picked(altered):
    shares = pd.DataFrame({"layer": [1, 2, 3], "share": [0.25, 0.6, 0.15]})
    text = altered(layer_stability=shares, record={"best_layer": 1}).text
    assert "25% pick layer 1 by the same rule; most often picked: 2 (60%), 1 (25%), 3 (15%)." in text


def test_node_stability_is_shown_where_it_was_asked_for(altered, study):
    assert "Stability: Jaccard" not in read_page(study).text
    table = pd.DataFrame(
        {"persona": ["alpha", NASTY], "jaccard": [0.31, 0.02], "expected_jaccard": 0.01, "p_adjusted": 0.04}
    )
    assert "Stability: Jaccard of the twenty nodes" in altered(node_stability=table).text
