"""Every causal class that transformers can build small, tried for what is read from it and done to it.

One line a class. Each check ends as ``right`` (equal to what transformers itself gives: hidden states, a plain forward
pass, an unbatched run), ``refused`` (a ValueError, printed below the line) or ``WRONG`` (a difference, or any other
error). The exit status is the number of wrong ones.

    uv run python benchmarks/bench_architectures.py [part of a class's name ...]
"""

import logging
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from trials import TRIALS, try_all
from zoo import causal_configs, make_any, make_config


def main(wanted: list[str]) -> int:
    """Try the classes whose name holds one of the words, or all."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    totals = dict.fromkeys(("right", "refused", "WRONG"), 0)
    built, unbuilt = 0, []
    print(f"{'':36}{''.join(f'{name:>12}' for name in TRIALS)}")
    for name, config in causal_configs().items():
        if wanted and not any(word.lower() in name.lower() for word in wanted):
            continue
        try:
            lm = make_any(make_config(config), name=name)
            lm.decoder(input_ids=lm.embedding.weight.new_zeros((1, 8)).long(), use_cache=False)
        except Exception as error:  # whatever it is, it is transformers' own
            unbuilt.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:100]}")
            continue
        built += 1
        outcomes = try_all(lm)
        print(f"{name:36}{''.join(f'{kind:>12}' for kind, _ in outcomes.values())}", flush=True)
        for kind, _ in outcomes.values():
            totals[kind] += 1
        for said in dict.fromkeys(said for _, said in outcomes.values() if said):
            print(f"    {said[:200]}", flush=True)
    print(f"{built} classes built; " + ", ".join(f"{count} {kind}" for kind, count in totals.items()))
    print("not built small:", *unbuilt, sep="\n    ")
    return totals["WRONG"]


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 100))
