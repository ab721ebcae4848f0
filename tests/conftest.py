"""What all tests share: no network, no windows, checked shapes and types, the default model and tiny random ones."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: more threads would only wait for each other
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import jaxtyping
import pytest
import torch

# Before the first import of either package: from here on, annotations in signatures are enforced.
jaxtyping.install_import_hook(["deepscan", "utils"], "typechecker.typechecker")


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in each run, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def lm():
    """The default model. Tests share it: leave it as it was."""
    from utils.models.load import load_model

    return load_model(device="cpu")


@pytest.fixture
def tiny():
    """Makes tiny random models: ``tiny(kind="llama", template="plain", adds_bos=True, seed=0, **config)``."""
    from tiny import make_lm

    return make_lm


@pytest.fixture(scope="session")
def wired(tmp_path_factory):
    """A tiny model into which a persona is wired, and a study of it. Tests share both: leave them as they were."""
    from wired import make_wired_study

    return make_wired_study(tmp_path_factory.mktemp("wired"))


@pytest.fixture
def unchecked(monkeypatch):
    """Lets an argument of a wrong type pass the checker of the tests and reach the library's own check."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
