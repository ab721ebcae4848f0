from .compare import Comparison as Comparison
from .compare import compare_studies as compare_studies
from .report import run_compare as run_compare
