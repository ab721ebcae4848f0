"""A scan small enough to repeat at every turn of a knob: one setting in, what it finds out.

For exploring. Ten runs and five flips are too few for a p-value, and a setting chosen by looking is not a test of what
was looked at: that is what :func:`deepscan.detect` with all its permutations, on other pairs, is for.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Shaped
from threadpoolctl import threadpool_limits

from deepscan import ScanRuns, detect
from utils.layers.reduction import reduce
from utils.nodes.sets import node_frequencies, node_sets, null_set_size
from utils.options import Center, PartName, ScoreName, Tail
from utils.statements.contrasts import Contrast, find_contrasts, restrict
from utils.statements.splits import split_parts

NODE_SHARE = 0.5


@dataclass(frozen=True)
class Setting:
    """Everything that an exploratory scan depends on besides the activations.

    Attributes
    ----------
    persona, layer
        What is scanned: the persona's positive statements (H1) against its negative ones (H0).
    part
        Which pairs, as :func:`utils.statements.split_parts` draws them with seed ``part_rng``. Those of ``select`` are
        there to be looked at; what is reported comes from ``test``.
    center, tail, score, alpha_max, alphas, n_clean, n_anomalous, restarts, n_runs, n_permutations, rng
        As for :func:`deepscan.detect`; ``alphas`` is the number of thresholds, and ``center="none"`` scans raw activations.
    """

    persona: str
    layer: int
    part: PartName = "select"
    center: Center = "auto"
    tail: Tail = "auto"
    score: ScoreName = "bj"
    alpha_max: float = 0.5
    alphas: int = 50
    n_clean: int = 8
    n_anomalous: int = 8
    restarts: int = 2
    rng: int = 0
    n_runs: int = 10
    n_permutations: int = 5
    part_rng: int = 0


@dataclass(frozen=True)
class Sides:
    """What a scan of one persona, layer and part starts from, whatever the options of the scan.

    Attributes
    ----------
    h0, h1
        (n_h0, n_nodes) and (n_h1, n_nodes) activations; with pairs, row i of both is pair i.
    paired
        Whether the sides are matched so.
    points
        The statements, H0 before H1, on their first two principal components: as :func:`utils.layers.reduce`
        returns them.
    """

    h0: Shaped[np.ndarray, "h0 nodes"]
    h1: Shaped[np.ndarray, "h1 nodes"]
    paired: bool
    points: pd.DataFrame


@dataclass(frozen=True)
class Rescan:
    """What an exploratory scan found.

    Attributes
    ----------
    setting, paired
        What was asked for, and whether flips went by pair.
    runs
        The runs, as :func:`deepscan.detect` returns them.
    nodes
        As :func:`utils.nodes.node_frequencies` returns them.
    n_nodes, null_n_nodes
        How many nodes at least half of the runs selected, and the mean of that number under flipped sides.
    points
        As of :class:`Sides`, with a column ``returned``: how many of the runs returned the statement.
    """

    setting: Setting
    paired: bool
    runs: ScanRuns
    nodes: pd.DataFrame
    n_nodes: int
    null_n_nodes: float
    points: pd.DataFrame

    @property
    def mixed(self) -> pd.DataFrame:
        """The runs with the true sides, one row each."""
        return self.runs.table[self.runs.table["kind"] == "mixed"]

    @property
    def null(self) -> pd.DataFrame:
        """The runs with flipped sides, one row each."""
        return self.runs.table[self.runs.table["kind"] == "null"]

    @property
    def chance(self) -> float:
        """Precision of a random choice of records."""
        return self.setting.n_anomalous / (self.setting.n_clean + self.setting.n_anomalous)


def choose_statements(acts: xr.DataArray, *, persona: str, part: PartName = "select", part_rng: int = 0) -> Contrast:
    """Find one persona's statements of a part, the positive against the negative; the same at every layer.

    Raises
    ------
    ValueError
        An unknown persona, or one with an empty side.
    """
    contrast = find_contrasts(acts, personas=[persona])[0]
    return contrast if part == "all" else restrict(contrast, split_parts(acts, rng=part_rng) == part)


def read_sides(acts: xr.DataArray, contrast: Contrast, *, layer: int, center: Center = "auto") -> Sides:
    """Take the statements of a contrast at one layer, and lay them out in two dimensions.

    Parameters
    ----------
    acts
        (layer, statement, node), as :func:`utils.activations.extract` returns it.
    contrast
        As :func:`choose_statements` returns it.
    center
        As of the setting; where pairs are centred for the scan they are in the picture, too.

    Raises
    ------
    ValueError
        An unknown layer, too few statements, or activations that are all the same.
    """
    if layer not in acts["layer"]:
        held = acts["layer"].to_numpy()
        raise ValueError(f"there is no layer {layer}; the activations have layers {held.min()} to {held.max()}.")
    own = acts.sel(layer=layer).isel(statement=contrast.rows).load()
    values, n_h0 = own.to_numpy(), len(contrast.h0)
    # A small matrix: threads of BLAS beside those of the scan cost more in waiting for each other than they gain.
    with threadpool_limits(1, user_api="blas"):
        points = reduce(own, center="pairs" if contrast.paired and center != "none" else "none")
    return Sides(values[:n_h0], values[n_h0:], contrast.paired, points)


def rescan(acts: xr.DataArray, setting: Setting, *, sides: Sides | None = None, n_jobs: int = 1) -> Rescan:
    """Scan with one setting.

    Parameters
    ----------
    acts
        (layer, statement, node), as :func:`utils.activations.extract` returns it.
    sides
        What :func:`read_sides` gives for the setting's statements and layer, where it is at hand; else it is read.
    n_jobs
        Threads; the result does not depend on it.

    Raises
    ------
    ValueError
        Whatever :func:`choose_statements`, :func:`read_sides` and :func:`deepscan.detect` refuse, among it samples too
        large for the statements.
    """
    if sides is None:
        contrast = choose_statements(acts, persona=setting.persona, part=setting.part, part_rng=setting.part_rng)
        sides = read_sides(acts, contrast, layer=setting.layer, center=setting.center)
    if setting.n_permutations < 1:
        raise ValueError(f"n_permutations is {setting.n_permutations}; scores need at least one flip beside them.")
    runs = detect(
        sides.h0,
        sides.h1,
        pairs=np.arange(len(sides.h0)) if sides.paired else None,
        n_clean=setting.n_clean,
        n_anomalous=setting.n_anomalous,
        n_runs=setting.n_runs,
        n_permutations=setting.n_permutations,
        center=None if setting.center == "none" else setting.center,
        tail=setting.tail,
        score=setting.score,
        alpha_max=setting.alpha_max,
        alphas=setting.alphas,
        restarts=setting.restarts,
        rng=setting.rng,
        n_jobs=n_jobs,
    )
    by_persona = {setting.persona: runs}
    # By frequency alone: node by node, five flips cannot give a p-value below 1/6.
    chosen = node_sets(by_persona, threshold=NODE_SHARE, level=None)[setting.persona]
    returned = [records for records, kind in zip(runs.records, runs.table["kind"], strict=True) if kind == "mixed"]
    times = np.bincount(np.concatenate(returned), minlength=len(sides.points))
    return Rescan(
        setting,
        sides.paired,
        runs,
        node_frequencies(by_persona),
        len(chosen),
        null_set_size(runs, threshold=NODE_SHARE, level=None),
        sides.points.assign(returned=times),
    )


def write_code(setting: Setting, *, paired: bool) -> str:
    """Python that repeats the scan of a setting on activations called ``acts``, down to the last number."""
    contrast = f"find_contrasts(acts, personas=[{setting.persona!r}])[0]"
    imports = "find_contrasts"
    if setting.part != "all":
        contrast = f"restrict({contrast}, split_parts(acts, rng={setting.part_rng}) == {setting.part!r})"
        imports = "find_contrasts, restrict, split_parts"
    pairs = "pairs=np.arange(len(contrast.h0)), " if paired else ""
    center = None if setting.center == "none" else setting.center
    lines = [
        *(["import numpy as np"] if paired else []),
        "from deepscan import detect",
        f"from utils.statements import {imports}",
        f"contrast = {contrast}",
        f"values = acts.sel(layer={setting.layer}).to_numpy()",
        "runs = detect(",
        f"    values[contrast.h0], values[contrast.h1], {pairs}center={center!r}, tail={setting.tail!r},",
        f"    score={setting.score!r}, alpha_max={setting.alpha_max}, alphas={setting.alphas}, restarts={setting.restarts}, "
        f"n_clean={setting.n_clean}, n_anomalous={setting.n_anomalous},",
        f"    n_runs={setting.n_runs}, n_permutations={setting.n_permutations}, rng={setting.rng},",
        ")",
    ]
    return "\n".join(lines)
