"""Check that notebooks are committed with outputs, define nothing, stay small and hold no path of a machine."""

import json
import re
import sys
from pathlib import Path

LIMIT = 1_500_000
PATH = re.compile(r"(?:/home/|/Users/|/root/|/work/|/tmp/|[A-Z]:\\\\)")


def find_faults(path: Path) -> list[str]:
    """What is wrong with a notebook, one sentence each."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    outputs = [output for cell in cells for output in cell["outputs"]]
    faults = []
    if path.stat().st_size > LIMIT:
        faults.append(f"{path.stat().st_size / 1e6:.1f} MB, over 1.5")
    if re.search(r"^\s*(?:def|class) ", source, re.MULTILINE):
        faults.append("defines functions or classes; logic belongs in the library")
    if not outputs:
        faults.append("has no outputs")
    if any(output["output_type"] == "error" for output in outputs):
        faults.append("holds an error")
    if "widgets" in notebook["metadata"]:
        # Readers without a kernel would show the dead widget in place of the picture beside it.
        faults.append("holds the state of widgets; remove metadata.widgets")
    # Pictures are base64, in which any letters may stand next to each other.
    text = json.dumps([{k: v for k, v in output.get("data", output).items() if k != "image/png"} for output in outputs])
    if found := PATH.search(text):
        faults.append(f"an output holds the path {text[found.start() : found.start() + 40]!r}")
    return [f"{path}: {fault}" for fault in faults]


if __name__ == "__main__":
    found = [fault for path in sorted(Path("notebooks").glob("*.ipynb")) for fault in find_faults(path)]
    sys.exit("\n".join(found) or 0)
