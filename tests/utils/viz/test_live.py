import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from utils.viz.live import embed_figures, layer_figure, map_figure

NASTY = "<script>alert(1)</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def statements():
    """Two pairs, a statement without a partner, and one that is on no map."""
    return pd.DataFrame(
        {
            "id": ["a", "b", "c", "d", "e", "f"],
            "persona": ["warm", "warm", NASTY, NASTY, "warm", "warm"],
            "direction": ["positive", "negative", "positive", "negative", "positive", "negative"],
            "pair": ["1", "1", "1", "1", None, None],
            "text": ["I like tea.", "I dislike tea.", NASTY, "$5 & \u201cmore\u201d", "Alone.", "Elsewhere."],
        }
    )


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame({"id": list("abcde"), "x1": rng.normal(size=5), "x2": rng.normal(size=5)}).assign(
            method=method, center=center, layer=layer
        )
        for method, center, layer in [
            ("pca", "none", 3), ("pca", "pairs", 3), ("pca", "none", 7), ("pca", "pairs", 7), ("umap", "none", 7),
        ]
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def localization():
    rows = [
        {"persona": persona, "layer": layer, "position": "last", "accuracy": 0.5 + layer / 10, "accuracy_low": 0.4,
         "accuracy_high": 0.9, "p_adjusted": 0.2 / layer}
        for persona in ("warm", NASTY)
        for layer in (1, 2, 3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def find_source(figure):
    return next(each for each in figure.references() if "partner" in getattr(each, "data", {}))


def test_partners_are_found_and_the_nearest_layer_is_shown_first(maps, statements):
    figure = map_figure(maps, statements, layer=6)
    data = find_source(figure).data
    assert list(data["partner"]) == [1, 0, 3, 2, -1]
    first = maps[(maps["method"] == "pca") & (maps["center"] == "none") & (maps["layer"] == 7)]
    np.testing.assert_allclose(data["x"], first["x1"] - first["x1"].mean(), rtol=1e-6)


def test_a_page_is_whole_in_itself_and_texts_stay_texts(maps, statements, localization):
    head, parts = embed_figures(
        [layer_figure(localization, position="last", mark=2), map_figure(maps, statements, layer=7)]
    )
    page = head + "".join(parts)
    assert len(parts) == 2
    parser = HTMLParser()
    parser.handle_starttag = lambda _, attrs: addresses.extend(
        value for name, value in attrs if name in ("src", "href")
    )
    addresses: list[str | None] = []
    parser.feed(page)
    assert not addresses
    assert NASTY not in page
    assert embed_figures([]) == ("", [])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_in_a_browser_the_slider_moves_points_and_a_click_finds_the_partner(maps, statements, localization, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    head, parts = embed_figures(
        [map_figure(maps, statements, layer=3), layer_figure(localization, position="last", mark=2)]
    )
    page = "".join(f"<div>{part}</div>" for part in parts)
    (tmp_path / "page.html").write_text(f"<html><head><meta charset='utf-8'>{head}</head><body>{page}</body></html>")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        shown = browser.new_page()
        faults, asked = [], []
        shown.on("pageerror", lambda fault: faults.append(str(fault)))
        shown.on("dialog", lambda dialog: faults.append(dialog.message))
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto((tmp_path / "page.html").as_uri())
        shown.wait_for_function("Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle")
        shown.evaluate(
            """() => {
              const all = Bokeh.documents.flatMap((each) => [...each._all_models.values()]);
              window.source = all.find((each) => each.data && each.data.partner);
              window.slider = all.find((each) => each.type === 'Slider');
              window.select = (title) => all.find((each) => each.type === 'Select' && each.title === title);
              window.words = all.find((each) => each.type === 'Div' && each.render_as_text);
              window.xs = () => [...source.data.x].map(Number);
            }"""
        )
        before = shown.evaluate("xs()")
        shown.evaluate("slider.value = 1")
        after = shown.evaluate("xs()")
        shown.evaluate("select('Persona').value = 'warm'")
        filtered = shown.evaluate("[...source.data.x].map((each) => Number.isNaN(each))")
        shown.evaluate("source.selected.indices = [2]")
        said, picked = shown.evaluate("words.text"), shown.evaluate("source.selected.indices")
        browser.close()
    for found, layer in ((before, 3), (after, 7)):
        own = maps[(maps["method"] == "pca") & (maps["center"] == "none") & (maps["layer"] == layer)]["x1"]
        np.testing.assert_allclose(found, own - own.mean(), rtol=1e-5)
    assert filtered == [False, False, True, True, False]
    assert picked == [2, 3]
    assert NASTY in said
    assert "$5 & \u201cmore\u201d" in said
    assert not faults
    assert asked == [(tmp_path / "page.html").as_uri()]
