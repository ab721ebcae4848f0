"""The explorer in a real JupyterLab, in a headless Chromium; left out where there is no Playwright or no Chromium."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")

TESTS = Path(__file__).resolve().parents[2]
MINUTE = 60_000  # ms
CELL = """
from scanned import START, make_acts
from utils.explorer import explore
explorer = explore(make_acts(), start=START)
explorer
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of the notebook in a JupyterLab of its own."""
    folder = tmp_path_factory.mktemp("lab")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.strip())], metadata=kernel)
    nbformat.write(notebook, folder / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder}"]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    home = {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | home | {"PYTHONPATH": path}, stdout=log, stderr=log)
        try:
            _wait_until_up(f"http://127.0.0.1:{port}/api", server)
            yield f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb"
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def page(lab):
    """The notebook, opened and run; the explorer is on the screen."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.goto(lab, timeout=2 * MINUTE)
        page.locator(".jp-Notebook .cm-content").first.click(timeout=2 * MINUTE)
        page.keyboard.press("Shift+Enter")
        page.locator("img.widget-image").wait_for(timeout=2 * MINUTE)
        yield page
        browser.close()


def read_score(page):
    found = re.search(r"score ([\d.]+), with", page.locator(".jp-OutputArea-output").first.inner_text())
    return found and float(found.group(1))


def wait_for_change(page, read, before):
    """The first value that is another than before."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (value := read(page)) not in (None, before):
            return value
        page.wait_for_timeout(50)
    raise AssertionError(f"still {before!r} after 30 s")


def knob(page, name):
    return page.locator(".widget-inline-hbox", has=page.get_by_text(name, exact=True))


def picture(page):
    return page.locator("img.widget-image").evaluate(
        "image => fetch(image.src).then(answer => answer.blob()).then(blob => blob.size)"
    )


def test_a_move_of_a_slider_changes_the_number_and_the_picture(page):
    score, size = read_score(page), picture(page)
    knob(page, "layer").locator(".noUi-handle").press("ArrowRight")
    assert wait_for_change(page, read_score, score) < score  # the planted nodes are at the layer before
    assert picture(page) != size
    assert "layer=3" in page.locator(".jp-OutputArea-output pre").inner_text()
    score = read_score(page)
    knob(page, "layer").locator(".noUi-handle").press("ArrowLeft")
    wait_for_change(page, read_score, score)


def test_a_drag_ends_where_the_knob_was_let_go(page):
    handle, track = knob(page, "seed").locator(".noUi-handle"), knob(page, "seed").locator(".noUi-target")
    start, box = handle.bounding_box(), track.bounding_box()
    y = start["y"] + start["height"] / 2
    page.mouse.move(start["x"] + start["width"] / 2, y)
    page.mouse.down()
    for step in range(1, 41):
        page.mouse.move(box["x"] + box["width"] * 0.8 * step / 40, y)
    page.mouse.up()
    shown = knob(page, "seed").locator(".widget-readout").inner_text()
    assert int(shown) > 50
    playwright.expect(page.locator(".jp-OutputArea-output pre")).to_contain_text(f"rng={shown}", timeout=MINUTE / 2)


def test_a_menu_scans_anew(page):
    score = read_score(page)
    knob(page, "tail").locator("select").select_option("right")
    wait_for_change(page, read_score, score)
    assert "tail='right'" in page.locator(".jp-OutputArea-output pre").inner_text()


def test_samples_too_large_give_one_sentence_and_keep_the_picture(page):
    size = picture(page)
    handle = knob(page, "clean records").locator(".noUi-handle")
    handle.press("End")
    alert = page.locator(".jp-OutputArea-output [role=alert]")
    playwright.expect(alert).to_contain_text("lower the samples", timeout=MINUTE / 2)
    assert picture(page) == size
    handle.press("Home")
    playwright.expect(alert).to_have_count(0, timeout=MINUTE / 2)


def _wait_until_up(address, server):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError("JupyterLab did not start")
