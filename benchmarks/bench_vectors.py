"""Generation under a persona vector against plain generation.

Plain and steered answers are made in turn, several times, and the medians of their process times are compared.
"""

import argparse
import statistics
import time

import numpy as np

from utils.models.generation import continue_ids
from utils.models.load import load_model
from utils.models.prompts import render_chat
from utils.vectors.fit import PersonaVectors
from utils.vectors.steering import add_vectors, cap_vectors, steering


def main(repeats, max_tokens):
    lm = load_model(device="cpu")
    layers = tuple(range(lm.n_layers + 1))
    generator = np.random.default_rng(0)
    values = generator.normal(size=(len(layers), 1, lm.d_model)).astype(np.float32)
    record = {"fingerprint": lm.fingerprint, "model": lm.name}
    vectors = PersonaVectors(values, layers, ("random",), np.full(len(layers), 30.0, np.float32), record)
    middle = lm.n_layers // 2
    conditions = {
        "plain": [],
        "one vector, one layer": add_vectors(lm, vectors, 0.05, layers=middle),
        "one vector, five layers": add_vectors(lm, vectors, 0.02, layers=range(middle, middle + 5)),
        "capped at one layer": cap_vectors(lm, vectors, -0.05, 0.05, layers=middle),
    }
    ids = lm.tokenizer(render_chat(lm.tokenizer, "Tell me about the sea."))["input_ids"]
    seconds = {name: [] for name in conditions}
    # An end of the answer would make answers of different lengths.
    lm.model.generation_config.eos_token_id = None
    lm.tokenizer.eos_token = "<|im_start|>"
    for turn in range(repeats + 1):
        for name, changes in conditions.items():
            started = time.process_time()
            with steering(lm, changes):
                made = continue_ids(lm.model, lm.tokenizer, [ids], device=lm.device, max_tokens=max_tokens)
            if turn and len(made[0]) == max_tokens:  # the first turn warms up
                seconds[name].append(time.process_time() - started)
    plain = statistics.median(seconds["plain"])
    print(f"{max_tokens} tokens, median of {repeats} turns, {lm.name}; at most 1.15 is promised")
    for name, own in seconds.items():
        each = statistics.median(own)
        print(f"{name:>24}  {each:6.2f} s  {each / plain:5.2f} x plain  ({len(own)} turns)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--max-tokens", type=int, default=48)
    arguments = parser.parse_args()
    main(arguments.repeats, arguments.max_tokens)
