"""The words that options take."""

from typing import Literal

Position = Literal["last", "statement", "mean"]
Role = Literal["system", "user", "raw"]
ContrastName = Literal["direction", "one-vs-rest"]
ScanName = Literal["group", "individual"]
ScoreName = Literal["bj", "hc", "ks"]
Tail = Literal["two-sided", "right", "left"]
