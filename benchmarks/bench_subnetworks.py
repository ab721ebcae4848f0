"""What masks of the default model take: calibration, both contrastive masks, applying, switching, the file, and memory.

Run ``uv run python benchmarks/bench_subnetworks.py [--statements 80] [--sparsity 0.5]``. Memory is the resident set above
what it was with the model loaded and run once: its peak over a step, where the system can say (Linux), which includes what the
allocator keeps for later.
"""

import argparse
import contextlib
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from utils.models.load import load_model
from utils.statements.load import load_statements
from utils.subnetworks.build import calibrate, contrastive_masks

T = TypeVar("T")

BUILD_SECONDS, APPLY_SECONDS, SIZE_RATIO = 60, 1.0, 1.05


def timed(run: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    return run(), time.perf_counter() - started


def show(what: str, value: float, target: float, unit: str = "s") -> None:
    verdict = "met" if value <= target else "missed"
    print(f"{what:44s} {value:9.2f} {unit:5s} target {target:g} {verdict}")


def resident(what: str = "VmRSS") -> float:
    """Megabytes of the process now, or at most since :func:`forget_peak` (``VmHWM``); NaN where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(rf"{what}:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else float("nan")


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--persona", default="extraversion")
    parser.add_argument("--statements", type=int, default=80, help="of each side")
    parser.add_argument("--sparsity", type=float, default=0.5)
    arguments = parser.parse_args()
    lm = load_model(arguments.model)
    frame = load_statements(personas=[arguments.persona])
    sides = [frame[frame["direction"] == side].head(arguments.statements) for side in ("positive", "negative")]
    calibrate(lm, ["Yes."], ["No."], progress=False)
    before = resident()
    forget_peak()
    calibration, calibrating = timed(lambda: calibrate(lm, *sides, progress=False))
    print(f"calibration: {sum(calibration.n_tokens.values())} tokens, {len(calibration.linears)} linear layers")
    options = {"sparsity": arguments.sparsity, "progress": False}
    for score in ("softplus", "relu", "disjoint"):
        masks, building = timed(lambda score=score: contrastive_masks(lm, calibration, score=score, **options))
        show(f"calibration + both masks ({score})", calibrating + building, BUILD_SECONDS)
    (a, b), weights = masks, masks[0].table()["weights"].sum()
    fingerprint, built = lm.fingerprint, resident("VmHWM") - before
    pruned = 0.0
    forget_peak()
    for _ in range(2):
        context = a.applied(lm)
        active, applying = timed(context.__enter__)
        pruned = active.n_values * lm.dtype.itemsize / 2**20
        _, switching = timed(lambda active=active: active.switch(b))
        _, leaving = timed(lambda context=context: context.__exit__(None, None, None))
    applied = resident("VmHWM") - before
    show("apply", applying, APPLY_SECONDS)
    show("switch", switching, APPLY_SECONDS)
    show("leave", leaving, APPLY_SECONDS)
    print(f"the model is as it was: {lm.fingerprint == fingerprint}")
    with tempfile.TemporaryDirectory() as folder:
        a.save(Path(folder) / "mask.safetensors")
        size = (Path(folder) / "mask.safetensors").stat().st_size
    show("file, of one bit a weight", 8 * size / weights, SIZE_RATIO, "times")
    print(f"peak memory above the model: {built:.0f} MB to calibrate and build, {applied:.0f} MB to apply and switch")
    print(f"values that are cut: {pruned:.0f} MB; weights covered: {weights * lm.dtype.itemsize / 2**20:.0f} MB")


if __name__ == "__main__":
    main()
