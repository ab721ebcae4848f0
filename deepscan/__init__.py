"""Subset scanning and permutation tests of activations: p-values, scores, searches, and experiments with honest p-values."""

from deepscan.calibrated import CalibratedScan, calibrated_scan
from deepscan.detection import detect
from deepscan.fixed_background import run_scans
from deepscan.individual import scan_individual
from deepscan.nodewise import node_test
from deepscan.pvalues import Background, PValues
from deepscan.runs import ScanRuns
from deepscan.search import ScanResult, scan
from deepscan.separation import SeparationTest, separation_test

__all__ = [
    "Background",
    "CalibratedScan",
    "PValues",
    "ScanResult",
    "ScanRuns",
    "SeparationTest",
    "calibrated_scan",
    "detect",
    "node_test",
    "run_scans",
    "scan",
    "scan_individual",
    "separation_test",
]
