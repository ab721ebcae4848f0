from .results import Study as Study
from .results import open_study as open_study
from .run import run_study as run_study
from .settings import StudyConfig as StudyConfig
