"""Run a whole study twice and print what it takes and what it finds.

Run ``uv run python benchmarks/bench_study.py [--statements PATH] [--out DIR]``. The first run starts from nothing, the
second changes nothing. Times are of this machine at this moment; the ratio is what can be compared.
"""

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path

from utils.study.results import Study
from utils.study.run import run_study
from utils.study.settings import StudyConfig


def timed_study(out: Path, config: StudyConfig) -> tuple[Study, float]:
    started = time.perf_counter()
    return run_study(out, config), time.perf_counter() - started


def print_findings(study: Study) -> None:
    layers = study.layers[study.layers["layer"] == study.best_layer]
    scans = study.detection[study.detection["layer"] == study.best_layer]
    clustered = layers["silhouette_low"] > layers["silhouette_null_high"]
    readable = layers["probe_auroc_low"] > 0.5
    found = scans["p_adjusted"] <= 0.05
    n = len(scans)
    print(f"layer {study.best_layer} of {study.record['n_layers']}")
    print(f"silhouette above flipped sides: {clustered.sum()} of {n}; values {spread(layers['silhouette'])}")
    print(f"probe AUROC above 0.5: {readable.sum()} of {n}; values {spread(layers['probe_auroc'])}")
    print(f"scan, adjusted p <= 0.05: {found.sum()} of {n}; precision {spread(scans['precision'])}")
    print(f"unadjusted p <= 0.05: {(scans['p_value'] <= 0.05).sum()} of {n}")
    print(f"node sets {spread(scans['node_set'])}, under flipped sides {spread(scans['null_node_set'])}")
    print(
        f"overlaps larger than under flipped sides: {(study.overlap['p_adjusted'] <= 0.05).sum()} of {len(study.overlap)}"
    )
    if study.record["has_texts"]:
        print(f"form accuracy {spread(study.form['form_accuracy'])}")


def spread(values) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--statements")
    parser.add_argument("--out", type=Path, help="keep the study here; by default it is removed")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="study-"))
    config = StudyConfig(statements=options.statements)
    try:
        study, first = timed_study(out, config)
        _, second = timed_study(out, config)
        print_findings(study)
    finally:
        if options.out is None:
            shutil.rmtree(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"first run {first:.0f} s, unchanged {second:.1f} s, ratio {first / second:.0f}; peak memory {peak:.1f} GB")


if __name__ == "__main__":
    main()
