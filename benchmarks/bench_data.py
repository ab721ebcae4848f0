"""Print what the shipped statements, questions and identities hold, and whether they keep their promises.

Run ``uv run python benchmarks/bench_data.py [statements.csv] [--similar]``; the exit status is 1 where a promise is broken.
"""

import argparse
import sys
from collections import Counter

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer

from utils.models.load import load_tokenizer
from utils.statements.contrasts import find_contrasts
from utils.statements.form import FORM_LIMIT, content_accuracy, form_accuracy, has_negation, words
from utils.statements.load import DATA, load_statements
from utils.statements.questions import load_identities, load_questions


def trigram_share(statements: pd.Series) -> tuple[str, float]:
    """The commonest opening of three words and its share."""
    opening, n = Counter(" ".join(words(text)[:3]) for text in statements).most_common(1)[0]
    return opening, n / len(statements)


def near_duplicates(frame: pd.DataFrame, *, threshold: float = 0.9) -> list[tuple[str, str, float]]:
    """Ids of statements whose TF-IDF cosine is over the threshold, pairs' own sides included."""
    x = TfidfVectorizer(analyzer=words).fit_transform(frame["statement"])
    found = []
    for start in range(0, len(frame), 512):
        similar = (x[start : start + 512] @ x.T).toarray()
        for i, j in zip(*np.nonzero(similar > threshold), strict=True):
            if start + i < j:
                found.append((frame["id"].iloc[start + i], frame["id"].iloc[j], float(similar[i, j])))
    return found


def report_persona(persona: str, frame: pd.DataFrame, tokenizer) -> tuple[dict, list[str]]:
    sides = {side: rows["statement"] for side, rows in frame.groupby("direction")}
    tokens = {side: np.mean([len(ids) for ids in tokenizer(list(text))["input_ids"]]) for side, text in sides.items()}
    negation = {side: np.mean([has_negation(text) for text in rows]) for side, rows in sides.items()}
    openings = {side: trigram_share(rows) for side, rows in sides.items()}
    ratio = tokens["positive"] / tokens["negative"]
    contrast = find_contrasts(frame)[0]
    texts = frame["statement"].iloc[contrast.rows].tolist()
    form = form_accuracy(texts, contrast.labels, contrast.units)
    row = {
        "persona": persona,
        "pairs": frame["pair"].nunique(),
        "tokens +": tokens["positive"],
        "tokens -": tokens["negative"],
        "negation +": negation["positive"],
        "negation -": negation["negative"],
        "opening": max(share for _, share in openings.values()),
        "form": form,
        "tf-idf": content_accuracy(texts, contrast.labels, contrast.units),
    }
    faults = []
    if frame["pair"].nunique() < 100:
        faults.append(f"{persona}: {frame['pair'].nunique()} pairs, at least 100 are promised")
    if abs(ratio - 1) >= 0.10:
        faults.append(f"{persona}: mean token lengths differ by {ratio - 1:+.0%}")
    if abs(negation["positive"] - negation["negative"]) >= 0.15:
        faults.append(
            f"{persona}: negation in {negation['positive']:.0%} of positive, {negation['negative']:.0%} of negative"
        )
    for side, (opening, share) in openings.items():
        if share > 0.08:
            faults.append(f"{persona}: {share:.0%} of {side} statements open with {opening!r}")
    if form >= FORM_LIMIT:
        faults.append(f"{persona}: form alone reaches {form:.3f}")
    return row, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default=DATA / "statements.csv")
    parser.add_argument("--similar", action="store_true", help="also list pairs of statements over 0.8 cosine")
    options = parser.parse_args()
    tokenizer = load_tokenizer()
    frame = load_statements(options.path)
    reports = [report_persona(persona, rows, tokenizer) for persona, rows in frame.groupby("persona", sort=False)]
    with pd.option_context("display.width", 160, "display.float_format", "{:.3f}".format):
        print(pd.DataFrame([row for row, _ in reports]).to_string(index=False))
    faults = [fault for _, found in reports for fault in found]
    faults += [f"near duplicates ({cosine:.2f}): {a} and {b}" for a, b, cosine in near_duplicates(frame)]
    if options.similar:
        for a, b, cosine in near_duplicates(frame, threshold=0.8):
            print(f"similar ({cosine:.2f}): {a} and {b}")
    if options.path == DATA / "statements.csv":
        questions, identities = load_questions(), load_identities()
        print(f"\n{len(questions)} questions over {questions['subject'].nunique()} subjects;", end=" ")
        print("right answers", questions["answer"].value_counts().sort_index().to_dict())
        print(f"{len(identities)} identities:", identities["group"].value_counts().to_dict())
        if len(questions) < 200 or questions["subject"].nunique() < 12:
            faults.append("fewer than 200 questions or 12 subjects")
        if identities["group"].value_counts().min() < 8:
            faults.append("a group of identities has fewer than 8")
    print("\n" + ("\n".join(f"FAULT {fault}" for fault in faults) or "All promises hold."))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
