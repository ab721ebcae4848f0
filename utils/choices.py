"""The words that options take."""

from typing import Literal

Component = Literal["resid", "attn", "mlp", "heads"]
Position = Literal["last", "statement", "mean"]
Role = Literal["system", "user", "raw"]
ContrastName = Literal["direction", "one-vs-rest"]
PartName = Literal["select", "test", "all"]
ScanName = Literal["group", "individual"]
ScoreName = Literal["bj", "hc", "ks"]
Tail = Literal["two-sided", "right", "left"]
Verdict = Literal["supported", "not supported", "mixed"]
SelectorName = Literal["mean-difference", "t-test", "probe"]
Part = Literal["attention", "mlp", "head"]
MaskScope = Literal["all", "attention", "mlp"]
MaskScore = Literal["magnitude", "random", "wanda", "relu", "softplus", "disjoint"]
MaskGroup = Literal["row", "layer", "global"]
Side = Literal["positive", "negative"]
Segment = Literal["before", "persona", "question", "last", "after", "all"]
Measure = Literal["likelihood", "self_report", "two_options"]
Scope = Literal["all", "statement", "last"]
Mode = Literal["steer", "ablate", "resample", "patch"]
