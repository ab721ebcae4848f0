"""Subset scanning and permutation tests of activations: p-values, scores, searches, and experiments with honest p-values."""

from deepscan.calibrated import CalibratedScan, calibrated_scan
from deepscan.detection import detect
from deepscan.fixed_background import run_scans
from deepscan.individual import scan_individual
from deepscan.nodewise import node_test
from deepscan.pvalues import Background, PValues
from deepscan.runs import ScanRuns, read_runs
from deepscan.search import ScanResult, scan
from deepscan.separation import SeparationTest, separation_test
from deepscan.splits import Labels, label_records, permute_labels

__all__ = [
    "Background",
    "CalibratedScan",
    "Labels",
    "PValues",
    "ScanResult",
    "ScanRuns",
    "SeparationTest",
    "calibrated_scan",
    "detect",
    "label_records",
    "node_test",
    "permute_labels",
    "read_runs",
    "run_scans",
    "scan",
    "scan_individual",
    "separation_test",
]
