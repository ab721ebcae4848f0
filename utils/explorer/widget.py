"""The live explorer of a notebook: knobs that scan anew at every turn.

What is computed is in :mod:`utils.explorer.rescan`, what is drawn in :mod:`utils.explorer.panels`; here are the knobs, and who
works when.
"""

import gc
import logging
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from html import escape
from threading import Lock
from typing import Any, get_args

import ipywidgets as widgets
import numpy as np
import xarray as xr

from utils.explorer.panels import draw_panels, make_panels
from utils.explorer.rescan import Rescan, Setting, Sides, choose_statements, read_sides, rescan, write_code
from utils.options import Center, PartName, ScoreName, Tail

__all__ = ["Explorer", "Newest", "Rescan", "Setting", "explore", "rescan", "write_code"]

logger = logging.getLogger(__name__)

_SCORES = {"bj": "Berk–Jones", "hc": "Higher Criticism", "ks": "Kolmogorov–Smirnov"}
_LABELS = {
    "alpha_max": "largest alpha",
    "alphas": "thresholds",
    "n_clean": "clean records",
    "n_anomalous": "anomalous",
    "rng": "seed",
}
_CAUTIONS = {
    "select": "The <b>test</b> pairs are not shown: what you choose here can be tested on them.",
    "test": "These are the pairs that the study reports: a setting chosen on them can no longer be tested on them.",
    "all": "The <b>test</b> pairs are among these: a setting chosen here can no longer be tested on them.",
}
_KEPT_SIDES = 32
_PARAGRAPH = "<p style='margin:4px 0;line-height:1.4'>"


def explore(acts: xr.DataArray, *, start: Setting | None = None, n_jobs: int = 2) -> "Explorer":
    """Show knobs for every option of a scan; a turn of one scans and draws anew.

    Parameters
    ----------
    acts
        (layer, statement, node), as :func:`utils.activations.extract` returns it, in memory or on disk.
    start
        Where the knobs begin; by default the first persona at the middle layer, on the ``select`` pairs.
    n_jobs
        Threads of a scan.

    Returns
    -------
    Explorer
        A widget. Where there is no kernel for it, a saved notebook shows its first picture instead.
    """
    if start is None:
        layers = acts["layer"].to_numpy()
        start = Setting(str(acts["persona"].to_numpy()[0]), int(layers[len(layers) // 2]))
    return Explorer(acts, start, n_jobs)


class Newest:
    """Calls a function with what is submitted, one call at a time, in a thread of its own.

    While a call runs, only the newest submission waits: those before it are dropped. A thread, and not the kernel's event
    loop, because the loop takes one message at a turn: it would scan between any two of those that are queued.
    """

    def __init__(self, call: Callable[[Any], None]) -> None:
        self._call = call
        self._lock = Lock()
        self._waiting: list[Any] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="explorer")
        self._last: Future[None] | None = None

    def submit(self, value: Any) -> None:
        """Have the function called with a value, unless a newer one comes before its turn."""
        with self._lock:
            is_queued = bool(self._waiting)
            self._waiting = [value]
            if not is_queued:
                self._last = self._pool.submit(self._take)

    def wait(self) -> None:
        """Return when nothing is left to do; raises what the last call raised."""
        if self._last is not None:
            self._last.result()

    def _take(self) -> None:
        with self._lock:
            value = self._waiting.pop()
        self._call(value)


class Explorer(widgets.VBox):
    """The widget of :func:`explore`.

    Attributes
    ----------
    controls
        The knobs, by field of :class:`utils.explorer.Setting`.
    picture, summary, message, caution, code
        What they change. ``message`` says in one sentence why a setting cannot be scanned; all else is then left as
        it was.
    found
        What the picture shows; None until a scan succeeds.
    """

    def __init__(self, acts: xr.DataArray, start: Setting, n_jobs: int) -> None:
        self._start, self._n_jobs, self._acts = start, n_jobs, acts
        self._choose = lru_cache(_KEPT_SIDES)(partial(choose_statements, acts))
        self._read = lru_cache(_KEPT_SIDES)(self._read_sides)
        self._panels = make_panels()
        self.found: Rescan | None = None
        self.controls = make_controls(acts, start)
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self.summary, self.message, self.caution, self.code = (widgets.HTML() for _ in range(4))
        shown = widgets.VBox([self.summary, self.message, self.picture], layout={"flex": "1 1 560px"})
        knobs = widgets.VBox(list(self.controls.values()), layout={"flex": "0 0 310px"})
        super().__init__(
            [widgets.HBox([knobs, shown], layout={"flex_flow": "row wrap"}), self.caution, self.code],
        )
        self.redraw(start)
        self._newest = Newest(self.redraw)
        for control in self.controls.values():
            control.observe(self._turn, names="value")

    @property
    def setting(self) -> Setting:
        """Where the knobs stand."""
        return replace(self._start, **{name: control.value for name, control in self.controls.items()})

    def wait(self) -> None:
        """Return when the picture shows where the knobs stand."""
        self._newest.wait()

    def redraw(self, setting: Setting) -> None:
        """Scan with a setting and show what it finds, or why that cannot be."""
        try:
            with _garbage_kept():
                chosen = {"persona": setting.persona, "part": setting.part, "part_rng": setting.part_rng}
                sides = self._read(setting.layer, setting.center, **chosen)
                found = rescan(self._acts, setting, sides=sides, n_jobs=self._n_jobs)
                draw_panels(found, self._panels.figure)
                png = self._panels.paint()
        except ValueError as error:
            self.message.value = _paint_message(str(error))
        except Exception as error:
            # In a thread of its own nobody else would see it.
            logger.exception("the explorer could not scan %s", setting)
            self.message.value = _paint_message(f"{type(error).__name__}: {error}")
        else:
            self.found = found
            self.message.value = ""
            self.picture.value = png
            self.summary.value = summarise_rescan(found)
            self.caution.value = (
                f"{_PARAGRAPH}{_CAUTIONS[setting.part]} Choosing a setting by looking is not a test: the study's p-values come "
                "from <code>detect</code> with all its permutations, on the test part.</p>"
            )
            code = escape(write_code(setting, paired=found.paired))
            self.code.value = f"{_PARAGRAPH}Copy as code:</p><pre style='line-height:1.3'>{code}</pre>"

    def _read_sides(self, layer: int, center: Center, **chosen: Any) -> Sides:
        return read_sides(self._acts, self._choose(**chosen), layer=layer, center=center)

    def _turn(self, _change: object) -> None:
        self._newest.submit(self.setting)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        bundle["text/plain"] = "Explorer: run the notebook to turn its knobs."
        if self.picture.value:
            bundle["image/png"] = b64encode(self.picture.value).decode()
        return bundle


def make_controls(acts: xr.DataArray, start: Setting) -> dict[str, Any]:
    """A knob for every field of a setting that is worth turning."""
    layers = [int(layer) for layer in acts["layer"].to_numpy()]
    personas = list(dict.fromkeys(acts["persona"].to_numpy().tolist()))
    for name, value, known in (("persona", start.persona, personas), ("layer", start.layer, layers)):
        if value not in known:
            raise ValueError(f"start has {name} {value!r}; the activations have {', '.join(map(str, known))}.")
    controls = {
        "persona": widgets.Dropdown(options=personas),
        "layer": widgets.SelectionSlider(options=layers),
        "part": widgets.Dropdown(options=get_args(PartName)),
        "center": widgets.Dropdown(options=get_args(Center)),
        "tail": widgets.Dropdown(options=get_args(Tail)),
        "score": widgets.Dropdown(options=[(_SCORES[name], name) for name in get_args(ScoreName)]),
        "alpha_max": widgets.FloatSlider(min=0.01, max=0.99, step=0.01),
        "alphas": widgets.IntSlider(min=1, max=max(200, start.alphas)),
        "n_clean": widgets.IntSlider(min=1, max=max(30, start.n_clean)),
        "n_anomalous": widgets.IntSlider(min=1, max=max(30, start.n_anomalous)),
        "restarts": widgets.IntSlider(min=1, max=max(5, start.restarts)),
        "rng": widgets.IntSlider(min=0, max=max(99, start.rng)),
    }
    for name, control in controls.items():
        control.description = _LABELS.get(name, name)
        control.style.description_width = "95px"
        control.layout.width = "300px"
        control.value = getattr(start, name)
    return controls


def summarise_rescan(found: Rescan) -> str:
    """The numbers of a scan as a line of HTML."""
    mixed, runs = found.mixed, found.setting.n_runs
    if not mixed["n_records"].any():
        return "The runs returned nothing: no p-value of theirs is small enough."
    low, high = np.nanquantile(mixed["precision"], [0.05, 0.95])
    return (
        f"{_PARAGRAPH}precision <b>{mixed['precision'].mean():.2f}</b> (5–95 % of {runs} runs: {low:.2f} to {high:.2f}; "
        f"by chance {found.chance:.2f}), recall <b>{mixed['recall'].mean():.2f}</b><br>"
        f"score <b>{mixed['score'].mean():.1f}</b>, with sides flipped {found.null['score'].mean():.1f}<br>"
        f"<b>{found.n_nodes}</b> of {found.runs.n_nodes} nodes in half or more of the runs, with sides flipped "
        f"{found.null_n_nodes:.1f}</p>"
    )


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """No search for garbage inside: a full one takes as long as a turn, and can as well come after the picture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _paint_message(text: str) -> str:
    return f'<p role="alert" style="color:#B00020">{escape(text)}</p>'
