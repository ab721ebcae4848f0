"""Persona vectors for other tools, and theirs for this one: control vectors in GGUF, additions by block, node sets as CSV.

Other tools count the decoder blocks from 0 and add a vector to a block's output; here layer k is the residual stream
after block k, counted from 1. So layer k is their block k − 1, and layer 0, the embedding's output, has none.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import pandas as pd
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from utils.models.language_model import LanguageModel
from utils.nodes.sets import NodeSet
from utils.records import write_beside
from utils.vectors.fit import PersonaVectors

_ARCHITECTURE = "controlvector"
_OWN = "personascope.record"
_DIRECTION, _BLOCK = "direction.", "decoder_block."


def block_additions(
    vectors: PersonaVectors, strength: float = 1.0, *, layers: int | Sequence[int] | None = None
) -> dict[int, Float[np.ndarray, " node"]]:
    """What to add to the output of each block, by the number of the block counted from 0.

    Parameters
    ----------
    vectors
        Of one persona.
    strength
        Length in units of the residual stream's, as for :func:`utils.vectors.add_vectors`: other tools' coefficient 1 then
        does what this strength does here.
    layers
        All by default, but for layer 0.

    Raises
    ------
    ValueError
        Several personas, layer 0, or a strength that is not finite.
    """
    if len(vectors.personas) != 1:
        raise ValueError(f"{len(vectors.personas)} personas go into one vector; choose one, as vectors['neuroticism'].")
    if not np.isfinite(strength):
        raise ValueError(f"the strength is {strength}; give a finite number.")
    chosen = vectors.at([layer for layer in vectors.layers if layer] if layers is None else layers)
    if 0 in chosen.layers:
        raise ValueError(
            "layer 0 is what enters the first block; other tools add to the output of blocks: leave it out."
        )
    rows = chosen.units[:, 0] * chosen.norms[:, None] * strength
    return {layer - 1: row.astype(np.float32) for layer, row in zip(chosen.layers, rows, strict=True)}


def write_gguf(
    path: str | Path,
    vectors: PersonaVectors,
    lm: LanguageModel,
    strength: float = 1.0,
    *,
    layers: int | Sequence[int] | None = None,
) -> None:
    """Write a control vector as repeng and llama.cpp read it (``llama-cli --control-vector FILE``).

    Both add it to every token, the first included, as :func:`utils.vectors.steering` does with ``first=True``.

    Parameters
    ----------
    strength
        What coefficient 1 will mean there, see :func:`block_additions`.
    layers
        2 and above, as llama.cpp refuses a direction of its layer 0, which is layer 1 here; all of these by default.

    Raises
    ------
    ValueError
        See :func:`block_additions`; vectors of another model, or layer 1.
    """
    vectors.check_model(lm)
    added = block_additions(
        vectors, strength, layers=[k for k in vectors.layers if k > 1] if layers is None else layers
    )
    if 0 in added or not added:
        raise ValueError("llama.cpp takes no vector for its layer 0, which is layer 1 here; give layers from 2 up.")
    record = {
        "persona": vectors.personas[0],
        "strength": strength,
        "record": vectors.record,
        "seen": sorted(vectors.seen),
    }
    record["norms"] = {str(layer): float(norm) for layer, norm in zip(vectors.layers, vectors.norms, strict=True)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as beside:
        writer = gguf.GGUFWriter(str(beside), _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", str(lm.model.config.model_type))
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(added))
        writer.add_string(_OWN, json.dumps(record))
        for block, row in added.items():
            writer.add_tensor(f"{_DIRECTION}{block}", row)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_gguf(path: str | Path, lm: LanguageModel, *, name: str | None = None) -> PersonaVectors:
    """Read a control vector, of this program or of others, for a model.

    Returns
    -------
    PersonaVectors
        Of one persona, called ``name``, as the file says, or as the file. A file of this program gives back the vector as
        it was, but for its length, which is that of what was exported. One of other tools has no unit: strength 1 is its
        own length.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file, one that is no control vector, or one of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        reader = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        rows = {
            int(tensor.name.removeprefix(_DIRECTION)): np.array(tensor.data, np.float32)
            for tensor in reader.tensors
            if tensor.name.startswith(_DIRECTION)
        }
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ValueError(f"{path} is not a GGUF file, or is cut short ({error}); get it again.") from None
    if fields.get("general.architecture") != _ARCHITECTURE or not rows:
        raise ValueError(f"{path} holds no control vector, but {fields.get('general.architecture')}.")
    hint = fields.get(f"{_ARCHITECTURE}.model_hint")
    if hint and hint != lm.model.config.model_type:
        raise ValueError(f"{path} is for a model of type {hint}, and {lm.name} is {lm.model.config.model_type}.")
    own = json.loads(str(fields[_OWN])) if _OWN in fields else {}
    made = from_blocks(rows, lm, name=name or own.get("persona") or path.stem)
    if not own:
        return made
    norms = np.array([own["norms"][str(layer)] for layer in made.layers], np.float32)
    return PersonaVectors(made.values, made.layers, made.personas, norms, own["record"], frozenset(own["seen"]))


def from_blocks(
    added: Mapping[int, Float[np.ndarray, " node"]], lm: LanguageModel, *, name: str = "imported"
) -> PersonaVectors:
    """Vectors from what other tools add to the outputs of blocks, counted from 0, as ``SteeringVector.layer_activations``.

    Strength 1 is a vector's own length.

    Raises
    ------
    ValueError
        A block that the model does not have, or another width.
    """
    blocks = sorted(int(block) for block in added)
    rows = np.stack([np.asarray(added[block], np.float32).reshape(-1) for block in blocks])
    if rows.shape[1] != lm.d_model or not 0 <= blocks[0] <= blocks[-1] < lm.n_layers:
        raise ValueError(
            f"the vectors have {rows.shape[1]} nodes and blocks {blocks[0]} to {blocks[-1]}; {lm.name} has {lm.d_model} nodes "
            f"and blocks 0 to {lm.n_layers - 1}."
        )
    record = {"model": lm.name, "fingerprint": lm.fingerprint, "model_dtype": str(lm.dtype).removeprefix("torch.")}
    norms = np.linalg.norm(rows, axis=1)
    layers = tuple(block + 1 for block in blocks)
    return PersonaVectors(rows[:, None], layers, (name,), norms, record | {"method": "imported"})


def write_blocks(path: str | Path, added: Mapping[int, Float[np.ndarray, " node"]]) -> None:
    """Write additions as a safetensors file of tensors ``decoder_block.<number>``.

    The package steering-vectors has no file format of its own; ``SteeringVector(layer_activations={...})`` takes the tensors
    by their numbers.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as beside:
        save_file({f"{_BLOCK}{block}": np.ascontiguousarray(row) for block, row in added.items()}, beside)


def read_blocks(path: str | Path) -> dict[int, Float[np.ndarray, " node"]]:
    """Read what :func:`write_blocks` wrote, for :func:`from_blocks`.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file, or one without tensors of that name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        found = {
            int(name.removeprefix(_BLOCK)): row for name, row in load_file(path).items() if name.startswith(_BLOCK)
        }
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file of blocks, or is cut short ({error}).") from None
    if not found:
        raise ValueError(f"{path} holds no tensors called {_BLOCK}<number>.")
    return found


def write_node_sets(path: str | Path, sets: Mapping[str, NodeSet], layer: int) -> None:
    """Write node sets as CSV: ``persona, layer, node, sign``, layers and nodes numbered as here."""
    rows = [(persona, layer, node, sign) for persona, nodes in sets.items() for node, sign in sorted(nodes)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as beside:
        pd.DataFrame(rows, columns=["persona", "layer", "node", "sign"]).to_csv(beside, index=False)


def read_node_sets(path: str | Path) -> dict[tuple[str, int], NodeSet]:
    """Read node sets by persona and layer from CSV.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file, or other columns.
    """
    table = pd.read_csv(path)
    if missing := {"persona", "layer", "node", "sign"} - set(table.columns):
        raise ValueError(f"{path} has no column {sorted(missing)[0]}; expected persona, layer, node and sign.")
    groups = table.groupby(["persona", "layer"], sort=False)
    return {
        (str(persona), int(str(layer))): frozenset(zip(own["node"].tolist(), own["sign"].tolist(), strict=True))
        for (persona, layer), own in groups
    }
