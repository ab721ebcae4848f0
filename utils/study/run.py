"""The whole study: statements to activations, layers, scans, node sets, figures and a report, each stage run once."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from deepscan import ScanRuns, detect
from utils.activations.store import holds, open_store, split_positions
from utils.folders import hold_folder
from utils.layers.maps import map_statements
from utils.layers.separation import SMALLEST_SIDE, divergence
from utils.layers.topics import topic_divergence
from utils.nodes.selectors import compare_selectors
from utils.nodes.sets import node_frequencies
from utils.nodes.stability import node_stability
from utils.records import RECORD, StageLog, key_of
from utils.statements.contrasts import Contrast, find_contrasts, restrict
from utils.statements.form import form_table
from utils.statements.names import short_name
from utils.statements.splits import split_parts
from utils.study.figures import draw_figures
from utils.study.report import write_report
from utils.study.results import Study, key_of_statements, open_study
from utils.study.settings import StudyConfig, check_config, fit_samples, needed_h0, scan_options
from utils.study.source import Source, check_scan_layers, open_source
from utils.study.tables import add_on_request, choose_layer, compare_node_sets, detect_personas, judge_thirds, locate
from utils.viz.pages import changed_figures, is_page

logger = logging.getLogger(__name__)

# Activations of at most so many bytes are read once; larger ones by layer and persona, where they are used.
_IN_MEMORY = 2e9


def run_study(out: str | Path, config: StudyConfig | None = None, *, progress: bool = True) -> Study:
    """Run a study into a folder; stages whose inputs have not changed are taken from there.

    Written: ``study.json`` (configuration, versions, timings, results), ``activations.zarr``, ``localization.parquet`` and
    ``onset.parquet`` (pair accuracy over layers), ``layers.parquet`` (the paper's metrics), ``layers_select.parquet`` (what
    the layer was chosen on) and ``layer_stability.parquet`` (how firmly), ``thirds.parquet`` (with every layer of the
    model), ``topics.parquet`` (personas of a topic against each other), ``form.parquet``, ``scans/<persona>.parquet``
    (further layers in ``scans/layer-<k>/``), ``detection.parquet`` (every test), ``tests/`` (node by node),
    ``nodes.parquet``, ``overlap.parquet``, ``agreement.parquet``, ``recurrence.parquet``, ``selectors.parquet``,
    ``power.parquet``, on request ``paper.parquet`` and ``node_stability.parquet``, ``figures/`` and ``report.html``.

    Parameters
    ----------
    out
        The study folder.
    config
        All options.
    progress
        Show bars.

    Returns
    -------
    Study
        The results, as :func:`utils.study.open_study` reads them from the folder.

    Raises
    ------
    ValueError, OSError
        What is wrong with the input, in one sentence. What was already computed stays in the folder; running again
        goes on from there.
    """
    config = config or StudyConfig()
    check_config(config)
    source = open_source(config)
    contrasts = find_contrasts(source.frame, contrast=config.contrast)
    part = split_parts(source.frame, rng=config.seed)
    select = [restrict(contrast, part == "select") for contrast in contrasts]
    test = [restrict(contrast, part == "test") for contrast in contrasts]
    config = fit_samples(config, test)
    _check_sizes(test, config)
    _check_select(select)
    with hold_folder(Path(out), record=RECORD) as folder:
        return _run_stages(folder, config, source, part, select, test, progress)


def _run_stages(
    folder: Path,
    config: StudyConfig,
    source: Source,
    part: np.ndarray,
    select: list[Contrast],
    test: list[Contrast],
    progress: bool,
) -> Study:
    log = StageLog(folder, asdict(config))
    store = folder / "activations.zarr"
    if source.key is None:
        # Arrays and hub models are compared with what is stored.
        source.compute(store, progress)
    else:
        held = holds(store, source.frame, log.made_from)
        log.stage("activations", source.key, lambda: source.compute(store, progress), exists=held)
    opened = open_store(store)
    by_position = split_positions(opened.load() if opened.nbytes <= _IN_MEMORY else opened)
    acts = next(iter(by_position.values()))
    check_scan_layers(config, acts["layer"].to_numpy().tolist())
    further = sorted(set(config.scan_layers))
    base = key_of(acts.attrs, acts["layer"].to_numpy(), source.frame, part, config.contrast, config.seed)
    layer = choose_layer(log, base, acts, select, config)
    locate(log, base, by_position, test, config, progress=progress)
    options = {"probe_flips": config.probe_flips, "rng": config.seed, "progress": progress}
    log.table("layers", key_of(base, config.probe_flips), lambda: divergence(acts, test, **options))
    of_test = acts.isel(statement=np.flatnonzero(part == "test"))
    if source.frame[source.frame["direction"] == "positive"].groupby("topic")["persona"].nunique().max() > 1:
        log.table("topics", base, lambda: topic_divergence(of_test, probe_permutations=0, progress=progress))
    else:
        log.leave_out("topics")
    log.table("maps", key_of(base, layer), lambda: map_statements(of_test, umap_layers=(layer,), rng=config.seed))
    thirds = judge_thirds(log, base, acts, test, config)
    if source.has_texts:
        log.table("form", base, lambda: form_table(source.frame["statement"].tolist(), test))
    scan_key = key_of(base, layer, further, scan_options(config), config.threshold)
    runs = {}
    for k in sorted({layer, *further}):
        scans = "scans" if k == layer else f"scans/layer-{k}"
        runs[k] = _scan_layer(log, scans, acts, test, k, base, config, progress)
    detection, tested = detect_personas(log, base, scan_key, runs, acts, test, config, progress=progress)
    frequencies = {
        k: node_frequencies(by_persona, threshold=config.threshold).assign(layer=k) for k, by_persona in runs.items()
    }
    log.table("nodes", scan_key, lambda: _concat(frequencies))
    values = acts.sel(layer=layer).to_numpy()
    compare_node_sets(log, key_of(scan_key, config.flips), runs[layer], values, test, tested[layer], config)
    add_on_request(log, key_of(base, layer), values, test, config, progress=progress)
    log.table(
        "selectors",
        scan_key,
        lambda: compare_selectors(runs[layer], values, test, threshold=config.threshold, n_flips=20),
    )
    if config.stability:
        log.table("node_stability", key_of(scan_key, config.stability), lambda: _halve(values, test, config, progress))
    else:
        log.leave_out("node_stability")
    log.add(
        activations=opened.attrs,
        n_layers=int(acts["layer"].max()),
        n_nodes=acts.sizes["node"],
        best_layer=layer,
        thirds=thirds,
        has_texts=source.has_texts,
        statements=key_of_statements(acts),
        sizes=[_describe_sizes(own, chosen) for own, chosen in zip(test, select, strict=True)],
        personas=detection.to_dict("records"),
    )
    log.finish()
    study = open_study(folder)
    log.stage("figures", scan_key, lambda: draw_figures(study), exists=_has_figures(folder / "figures"))
    log.finish()
    log.stage("report", scan_key, lambda: write_report(study), exists=is_page(folder / "report.html"))
    log.finish()
    return open_study(folder)


def _has_figures(folder: Path) -> bool:
    return folder.is_dir() and not changed_figures(folder)


def _scan_layer(
    log: StageLog,
    folder: str,
    acts: xr.DataArray,
    contrasts: list[Contrast],
    layer: int,
    base: str,
    config: StudyConfig,
    progress: bool,
) -> dict[str, ScanRuns]:
    """Scan every persona at one layer; each is a stage of its own, so that an interrupted study keeps what it has."""
    values = acts.sel(layer=layer).to_numpy()
    key = key_of(base, layer, scan_options(config))
    runs = {}
    for contrast in contrasts:
        compute = partial(_scan, values, contrast, config, progress)
        # Named after the file and not the layer: scans of another best layer may have taken its place since.
        runs[contrast.persona] = ScanRuns.load(log.file(f"{folder}/{contrast.persona}", key, compute))
    return runs


def _scan(values: np.ndarray, contrast: Contrast, config: StudyConfig, progress: bool, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = detect(
        values[contrast.h0],
        values[contrast.h1],
        pairs=np.arange(len(contrast.h0)) if contrast.paired else None,
        n_jobs=config.n_jobs,
        progress=progress and f"scanning {short_name(contrast.persona)}",
        **scan_options(config),
    )
    found.save(path)


def _halve(values: np.ndarray, contrasts: list[Contrast], config: StudyConfig, progress: bool) -> pd.DataFrame:
    names = ("tail", "center", "score", "alpha_max", "alphas", "restarts", "scan")
    options = {name: value for name, value in scan_options(config).items() if name in names}
    return node_stability(
        values, contrasts, n_flips=config.stability, rng=config.seed, n_jobs=config.n_jobs, progress=progress, **options
    )


def _check_sizes(contrasts: list[Contrast], config: StudyConfig) -> None:
    """Refuse, before the long work, statements too few for the split of a run."""
    fewest = config.n_anomalous or 1
    for contrast in contrasts:
        n_h0, n_h1 = len(contrast.h0), len(contrast.h1)
        want = needed_h0(config, paired=contrast.paired)
        if n_h1 < fewest or n_h0 < want:
            unit = "pairs" if contrast.paired else "H0 statements"
            raise ValueError(
                f"persona {contrast.persona!r} has {n_h0} {unit} (and {n_h1} H1 statements) in its test part; a run "
                f"needs {want}, of them {config.n_clean} clean, and {fewest} H1 statements: "
                "give more statements or smaller --clean and --anomalous."
            )


def _check_select(contrasts: list[Contrast]) -> None:
    """Refuse, before the long work, statements too few to choose a layer on."""
    for contrast in contrasts:
        n_h0, n_h1 = len(contrast.h0), len(contrast.h1)
        if min(n_h0, n_h1) < SMALLEST_SIDE:
            raise ValueError(
                f"persona {contrast.persona!r} has {n_h1} H1 and {n_h0} H0 statements in its select part, on which the layer is "
                f"chosen; at least {SMALLEST_SIDE} of each are needed (a quarter of all is drawn): give more statements."
            )


def _describe_sizes(test: Contrast, select: Contrast) -> dict:
    return {
        "persona": test.persona,
        "paired": test.paired,
        "select_h0": len(select.h0),
        "select_h1": len(select.h1),
        "test_h0": len(test.h0),
        "test_h1": len(test.h1),
    }


def _concat(frequencies: dict[int, pd.DataFrame]) -> pd.DataFrame:
    columns = ["persona", "layer", "node", "sign", "frequency", "null_frequency", "p_value"]
    return pd.concat(frequencies.values(), ignore_index=True)[columns]
