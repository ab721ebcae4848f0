"""Let everything go wrong: kills, a full disk, a read-only folder, two processes, damaged files; and count what a rerun mends.

Run ``uv run python benchmarks/faults.py [--trials 10] [--jobs study,causal] [--faults kill] [--seed 0]``. A run survives a fault
when it says what is wrong in a sentence (or is killed) and the same command then finishes; it is bit-identical when its files are
then those of a run that nothing befell (records aside, which hold times).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from faulty import FAULTS, JOBS, Undisturbed, prepare, strike  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10, help="of every job and fault")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started, outcomes = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        site = Path(folder)
        prepare(site)
        plain = Undisturbed(site)
        for fault in options.faults.split(","):
            for job in options.jobs.split(","):
                found = list(strike(plain, fault, job, options.trials, seed=options.seed))
                outcomes += found
                show(f"{fault:>16}  {job:>8}", found)
                for each in found:
                    if not (each.survived and each.identical):
                        print(f"    {each}", flush=True)
    show("all", outcomes)
    print(f"{time.perf_counter() - started:.0f} s, seed {options.seed}")


def show(name: str, outcomes: list) -> None:
    survived, identical = (sum(getattr(each, field) for each in outcomes) for field in ("survived", "identical"))
    n = len(outcomes)
    print(f"{name}: survived {survived}/{n}, bit-identical {identical}/{n}", flush=True)


if __name__ == "__main__":
    main()
