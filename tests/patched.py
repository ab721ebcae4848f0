"""Tiny models with room for whole questions, and patches done the plain way to compare with."""

import pandas as pd
import torch
from tiny import ARCHITECTURES, make_lm

from utils.models.components import hook_component
from utils.models.forward import logits_at

# Of as many tokens, also for a tokenizer that mostly knows bytes.
EQUAL = "nurse", "purse"
LONGER = "nurse", "very careless student"


def make_questions(n=2):
    rows = [(f"q{i}", "sums", f"{i} + {'1' * (i + 1)}?", "1", "two", "3", "4", "ABCD"[i % 4]) for i in range(n)]
    return pd.DataFrame(rows, columns=["id", "subject", "question", "A", "B", "C", "D", "answer"])


def make_wide(kind="llama", *, window=None, **changes):
    """A tiny model with a context of 512 tokens; ``window`` is that of its sliding attention, wide by default."""
    values = ARCHITECTURES[kind][1]
    changes["n_positions" if "n_positions" in values else "max_position_embeddings"] = 512
    if "sliding_window" in values:
        changes["sliding_window"] = window or 512
    return make_lm(kind, **changes)


def run_plainly(lm, prompt, *hooks):
    """Logits of the last token in one whole pass; each hook is (component, layer, act)."""
    ids = torch.tensor([prompt.ids])
    stack = [hook_component(lm, component, [layer], act) for component, layer, act in hooks]
    with torch.inference_mode():
        for hook in stack:
            hook.__enter__()
        try:
            return logits_at(lm, ids, torch.tensor([len(prompt.ids) - 1]), attention_mask=torch.ones_like(ids))[0]
        finally:
            for hook in reversed(stack):
                hook.__exit__(None, None, None)


def put(values, to, taken, head=None):
    """An act that puts some tokens of other values into a run of one row."""

    def act(_layer, value):
        changed = value.clone()
        if head is None:
            changed[0, to] = values[taken]
        else:
            changed[0, to, head] = values[taken][:, head]
        return changed

    return act
