import json
from dataclasses import replace

import numpy as np
import pytest
from wired import PERSONA

from utils.experiments.vectors import (
    describe_turned,
    draw_vectors,
    export_vectors,
    open_vectors,
    run_vectors,
)
from utils.study.results import key_of_study
from utils.vectors.export import read_gguf
from utils.vectors.settings import VectorsConfig
from utils.viz.pages import read_section

CONFIG = VectorsConfig(
    layers=[1, 2],
    strengths=[0.2],
    doses=[-0.2, 0.2],
    n_select=4,
    n_pairs=6,
    n_random=19,
    n_flipped=9,
    n_texts=8,
    n_flips=9,
    bound=100.0,
)


@pytest.fixture(scope="module")
def result(wired, tmp_path_factory):
    lm, study = wired
    return run_vectors(lm, study, CONFIG, out=tmp_path_factory.mktemp("vectors"), progress=False)


def test_a_wired_persona_is_turned_on_pairs_of_its_own(wired, result):
    _, study = wired
    (row,) = result.turned.to_dict("records")
    assert row["persona"] == PERSONA
    assert row["p_random_adjusted"] == pytest.approx(1 / 20)
    units = set(result.measured.loc[result.measured["measure"] == "likelihood", "unit"])
    assert len(units) == 6
    assert not {f"pair {unit}" for unit in units} & result.vectors.seen
    assert result.layer in (1, 2)
    assert result.strength == 0.2
    assert result.vectors.record["layer"] == result.layer
    assert set(result.doses["strength"]) == {-0.2, 0.0, 0.2}
    assert "1 of 1 personas" in describe_turned(result)[0]
    np.testing.assert_array_equal(study.vectors[PERSONA].values, result.vectors.values)


def test_a_second_run_computes_nothing(wired, result, monkeypatch):
    lm, study = wired
    monkeypatch.setattr("utils.experiments.vectors.measure_changes", lambda *_a, **_o: pytest.fail("measured again"))
    again = run_vectors(lm, study, CONFIG, out=result.folder, progress=False)
    assert again.turned.equals(result.turned)
    assert open_vectors(result.folder).record == result.record


def test_figures_section_and_export(wired, result):
    lm, study = wired
    draw_vectors(result, study)
    section, held = read_section(result.folder / "section.json")
    assert held["study"] == key_of_study(study)
    assert {path.stem for path, _ in section.figures} == {"turned", "doses", "cosines", "interference"}
    assert all(path.exists() for path, _ in section.figures)
    at_two = replace(result, record={**result.record, "layer": 2})  # 1 may be chosen, and llama.cpp takes none for it
    (path,) = export_vectors(lm, at_two)
    own, written = (vectors.at(2).values.ravel() for vectors in (result.vectors[PERSONA], read_gguf(path, lm)))
    np.testing.assert_allclose(written / np.linalg.norm(written), own / np.linalg.norm(own), atol=1e-6)
    assert json.loads((result.folder / "vectors.json").read_text())["layer"] == result.layer


def test_bad_input(wired, tiny, tmp_path):
    lm, study = wired
    with pytest.raises(ValueError, match="with other weights or another dtype"):
        run_vectors(tiny(), study, CONFIG, out=tmp_path)
    with pytest.raises(ValueError, match="unknown persona"):
        run_vectors(lm, study, VectorsConfig(personas=["wram"]), out=tmp_path)
    with pytest.raises(FileNotFoundError, match="not hold a finished run"):
        open_vectors(tmp_path)
