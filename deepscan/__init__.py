"""Non-parametric subset scanning of activations: p-values, scores, searches, and experiments with honest p-values."""

from deepscan.detection import detect
from deepscan.fixed_background import run_scans
from deepscan.individual import scan_individual
from deepscan.pvalues import Background, PValues
from deepscan.runs import ScanRuns
from deepscan.search import ScanResult, scan

__all__ = ["Background", "PValues", "ScanResult", "ScanRuns", "detect", "run_scans", "scan", "scan_individual"]
