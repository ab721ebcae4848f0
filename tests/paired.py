"""Statements in pairs that say next to nothing."""

import pandas as pd


def make_statements(n=6, first=0, persona="openness"):
    rows = []
    for i in range(first, first + n):
        for direction, word in (("positive", "like"), ("negative", "fear")):
            text = f"I {word} thing {i}."
            rows.append((f"{persona}-{i}{direction[0]}", persona, "t", direction, text, f"{persona}-{i}"))
    return pd.DataFrame(rows, columns=["id", "persona", "topic", "direction", "statement", "pair"])
