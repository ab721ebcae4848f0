"""Time the subset scan beside adversarial-robustness-toolbox's on the same p-values, and measure its scaling and memory.

Run ``uv run --group bench python benchmarks/bench_scan.py [--part scans|experiment|detect|scaling|start]``. Every line
is measured in this run; both sides of a ratio take turns. The peer is ``Scanner.fgss_for_nets`` (Berk-Jones), starting
from all records as our first restart does; its later restarts begin from random subsets of the records, ours from all
nodes and then from small and large random subsets. It thins the distinct p-values to about 50 thresholds at every step
anew; "its thresholds" are those of the whole matrix, given to ours.
"""

import argparse
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import deepscan

N_RECORDS = 50
N_BACKGROUND = 250


def planted_pvalues(n_nodes: int, *, n_records: int = N_RECORDS, seed: int = 0) -> deepscan.PValues:
    """Right-tail p-values; in half of the records a twentieth of the nodes is shifted."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_records, n_nodes))
    x[: n_records // 2, : max(1, n_nodes // 20)] += 0.7
    return deepscan.Background(rng.normal(size=(N_BACKGROUND, n_nodes))).pvalues(x)


def peer_scanner():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.defences.detector.evasion.subsetscanning.scanner import Scanner
    return Scanner


def peer_thresholds(upper: np.ndarray, alpha_max: float = 0.5) -> np.ndarray:
    """The thresholds that the peer takes from a matrix: every few of the distinct p-values, and the largest allowed."""
    distinct = np.unique(upper)
    distinct = distinct[distinct < alpha_max]
    return np.append(distinct[:: int(len(distinct) / 50) + 1], alpha_max)


def seconds(call, repeats: int = 1) -> tuple:
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    return (time.perf_counter() - start) / repeats, result


def bench_scans() -> None:
    print(f"one scan, {N_RECORDS} records, single thread, from float p-values to result (medians)")
    print(
        f"{'nodes':>7} {'restarts':>8} {'peer':>10} {'ours':>10} {'ratio':>6} {'its thresholds':>14} {'ratio':>6}"
        f" {'peer score':>11} {'ours':>11} {'its thresholds':>14}"
    )
    for n_nodes, rounds in ((576, 15), (4096, 15), (65536, 3)):
        compare_scans(n_nodes, 1, rounds)
        compare_scans(n_nodes, 10, -(-rounds // 5))


def compare_scans(n_nodes: int, restarts: int, rounds: int) -> None:
    scanner = peer_scanner()
    p = planted_pvalues(n_nodes)
    both = np.stack([p.lower, p.upper], axis=-1)
    thresholds = peer_thresholds(p.upper)

    def peer():
        return scanner.fgss_for_nets(both, restarts=restarts, image_to_node_init=True)

    def ours():
        return deepscan.scan(p, restarts=restarts)

    def same():
        return deepscan.scan(p, restarts=restarts, alphas=thresholds)

    ours(), same()
    np.random.seed(0)  # noqa: NPY002 - the peer draws from the global generator
    times = []
    for _ in range(rounds):
        one, found = seconds(peer)
        two, grid = seconds(ours, 5)
        three, given = seconds(same, 5)
        times.append((one, two, three))
    a, b, c = np.median(times, axis=0)
    print(
        f"{n_nodes:7d} {restarts:8d} {a * 1e3:8.1f}ms {b * 1e3:8.2f}ms {a / b:6.0f} {c * 1e3:12.2f}ms {a / c:6.0f}"
        f" {found[0]:11.3f} {grid.score:11.3f} {given.score:14.3f}"
    )


def bench_experiment(n_nodes: int = 4096) -> None:
    scanner = peer_scanner()
    rng = np.random.default_rng(0)
    h0, clean, anomalous = (rng.normal(size=(n, n_nodes)).astype(np.float32) for n in (N_BACKGROUND, 150, 150))
    anomalous[:, : n_nodes // 20] += 0.7
    options = {"n_clean": 25, "n_anomalous": 25, "n_runs": 100, "n_null_runs": 100, "restarts": 1}

    def experiment():
        return deepscan.run_scans(deepscan.Background(h0), clean, anomalous, **options)

    deepscan.run_scans(deepscan.Background(h0), clean, anomalous, **(options | {"n_runs": 1, "n_null_runs": 1}))
    bg = deepscan.Background(h0)
    p, q = bg.pvalues(clean), bg.pvalues(anomalous)
    pools = [np.stack([each.lower, each.upper], axis=-1) for each in (p, q)]
    peer = ours = 0.0
    for turn in range(5):
        ours += seconds(experiment)[0] / 5
        for run in range(turn * 40, turn * 40 + 40):
            n = 25 if run % 2 else 50
            sample = [pools[0][rng.permutation(150)[:n]], pools[1][rng.permutation(150)[: 50 - n]]]
            both = np.concatenate(sample)
            peer += seconds(lambda: scanner.fgss_for_nets(both, restarts=1, image_to_node_init=True))[0]  # noqa: B023
    print(f"\nrun_scans, {n_nodes} nodes, background {N_BACKGROUND}, 100 mixed + 100 null runs, restarts=1, one thread")
    print(f"ours with sorting and p-values {ours:.2f} s, the peer's 200 scans alone {peer:.1f} s: {peer / ours:.0f} x")


def bench_detect() -> None:
    rng = np.random.default_rng(0)
    print("\ndetect, 90 pairs, 15 + 15 records, 100 runs, 99 permutations, restarts=2, n_jobs=2")
    for n_nodes in (576, 4096):
        h0, h1 = (rng.normal(size=(90, n_nodes)).astype(np.float32) for _ in range(2))
        h1[:, : n_nodes // 20] += 0.7
        for kind in ("group", "individual"):
            options = {"pairs": np.arange(90), "scan": kind, "n_jobs": 2}
            deepscan.detect(h0, h1, n_runs=1, n_permutations=1, **options)
            taken, runs = seconds(lambda: deepscan.detect(h0, h1, **options))  # noqa: B023
            print(f"{n_nodes:6d} nodes, {kind:10s} {taken:6.1f} s   p = {runs.p_value}")


def bench_scaling() -> None:
    print("\nscan, restarts=1: time per cell should stay level")
    for n_records, n_nodes in [(50, 10**k) for k in (3, 4, 5, 6)] + [(n, 4096) for n in (50, 100, 300, 1000, 3000)]:
        upper = planted_pvalues(n_nodes, n_records=n_records).upper
        deepscan.scan(upper, restarts=1)
        taken = min(seconds(lambda: deepscan.scan(upper, restarts=1))[0] for _ in range(5))  # noqa: B023
        print(f"{n_records:6d} x {n_nodes:8d} {taken * 1e3:10.2f} ms {taken / upper.size * 1e9:7.2f} ns a cell")
    print("\npeak memory of a scan over its input, 50 x 1,000,000")
    for alphas in ("50", "exact"):
        subprocess.run([sys.executable, __file__, "--memory", alphas], check=True)


def peak_kib() -> int:
    """Largest resident size of this process so far (Linux; the getrusage one would include the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))


def bench_memory(alphas: str) -> None:
    choice = "exact" if alphas == "exact" else int(alphas)
    # Made in place: the peak of making the input must not hide that of the scan.
    upper = np.random.default_rng(0).random((N_RECORDS, 1_000_000))
    upper *= N_BACKGROUND + 1
    np.ceil(upper, out=upper)
    upper /= N_BACKGROUND + 1
    deepscan.scan(upper[:, :2000].copy(), alphas=choice)
    before = peak_kib()
    deepscan.scan(upper, alphas=choice)
    over = peak_kib() - before
    print(f"alphas={alphas:6s} {over / 1024:8.0f} MiB, {over * 1024 / upper.size:.2f} bytes a cell")


def bench_start() -> None:
    print("\nstart of a fresh process (compiled kernels cached on disk)")
    for name, code in (
        ("python alone", "pass"),
        ("import deepscan", "import deepscan"),
        ("and a first scan", "import deepscan, numpy; deepscan.scan(numpy.full((5, 9), 0.1))"),
    ):
        taken = min(seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True))[0] for _ in range(5))  # noqa: B023
        print(f"{name:18s} {taken:5.2f} s")


def main() -> None:
    parts = {
        "scans": bench_scans,
        "experiment": bench_experiment,
        "detect": bench_detect,
        "scaling": bench_scaling,
        "start": bench_start,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=parts)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        bench_memory(arguments.memory)
        return
    for name, part in parts.items():
        if arguments.part in (None, name):
            part()


if __name__ == "__main__":
    main()
