import gguf
import numpy as np
import pytest
import torch
from sided import make_vectors

from utils.models.hooks import hook_outputs
from utils.vectors.export import (
    block_additions,
    from_blocks,
    read_blocks,
    read_gguf,
    read_node_sets,
    write_blocks,
    write_gguf,
    write_node_sets,
)
from utils.vectors.steering import add_vectors, steering

IDS = torch.tensor([[1, 40, 80, 60, 7], [1, 9, 33, 250, 99]])


def logits(model):
    """Row by row: repeng takes no batches without position ids of their own."""
    with torch.no_grad():
        return torch.cat([model(input_ids=row[None]).logits for row in IDS])


@pytest.mark.parametrize("kind", ["llama", "gpt-2", "falcon"])
def test_a_control_vector_does_at_blocks_counted_from_0_what_it_does_here(tiny, tmp_path, kind):
    lm = tiny(kind)
    vectors = make_vectors(lm)["warm"]
    write_gguf(tmp_path / "v.gguf", vectors, lm, 0.7)
    with steering(lm, add_vectors(lm, vectors, 0.7, layers=[2, 3]), first=True):
        ours = logits(lm.model)
    # By the format's definition: direction.<il> is added to the output of block il, counted from 0; there is none for 0.
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    added = {int(tensor.name.split(".")[1]): torch.tensor(np.array(tensor.data)) for tensor in reader.tensors}
    assert sorted(added) == [1, 2]
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.layer_count"].contents() == 2
    with hook_outputs({il: lm.blocks[il] for il in added}, lambda il, value: value + added[il]):
        theirs = logits(lm.model)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(ours, logits(lm.model), atol=1e-2)


def test_repeng_gives_the_same_logits(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # repeng 0.4 is older than NumPy 2
    repeng = pytest.importorskip("repeng")
    lm = tiny()
    vectors = make_vectors(lm)["warm"]
    write_gguf(tmp_path / "v.gguf", vectors, lm, 0.7)
    with steering(lm, add_vectors(lm, vectors, -1.4, layers=[2, 3]), first=True):
        ours = logits(lm.model)
    read = repeng.ControlVector.import_gguf(tmp_path / "v.gguf")
    wrapped = repeng.ControlModel(lm.model, list(read.directions))
    wrapped.set_control(read, -2.0)
    try:
        torch.testing.assert_close(logits(wrapped), ours, atol=1e-5, rtol=0)
    finally:
        wrapped.unwrap()
    # And the way back: a vector that repeng wrote, without a record of ours.
    read.export_gguf(tmp_path / "theirs.gguf")
    back = read_gguf(tmp_path / "theirs.gguf", lm)
    assert back.layers == (2, 3)
    with steering(lm, add_vectors(lm, back, -2.0, layers=[2, 3]), first=True):
        torch.testing.assert_close(logits(lm.model), ours, atol=1e-5, rtol=0)


def test_steering_vectors_gives_the_same_logits(tiny, tmp_path):
    package = pytest.importorskip("steering_vectors")
    lm = tiny()
    vectors = make_vectors(lm)["warm"]
    write_blocks(tmp_path / "v.safetensors", block_additions(vectors, 0.5, layers=[1, 3]))
    tensors = {block: torch.tensor(row) for block, row in read_blocks(tmp_path / "v.safetensors").items()}
    with steering(lm, add_vectors(lm, vectors, 0.5, layers=[1, 3]), first=True):
        ours = logits(lm.model)
    with package.SteeringVector(layer_activations=tensors).apply(lm.model):
        torch.testing.assert_close(logits(lm.model), ours, atol=1e-5, rtol=0)


def test_files_come_back(tiny, tmp_path):
    lm = tiny()
    vectors = make_vectors(lm)["terse"]
    write_gguf(tmp_path / "v.gguf", vectors, lm, 0.5)
    back = read_gguf(tmp_path / "v.gguf", lm)
    assert back.personas == ("terse",)
    assert back.layers == (2, 3)
    np.testing.assert_allclose(back.units, vectors.at([2, 3]).units, atol=1e-6)
    np.testing.assert_allclose(back.norms, vectors.at([2, 3]).norms)
    assert back.record == vectors.record
    added = block_additions(vectors, 0.5)
    assert sorted(added) == [0, 1, 2]
    write_blocks(tmp_path / "v.safetensors", added)
    made = from_blocks(read_blocks(tmp_path / "v.safetensors"), lm)
    assert made.layers == (1, 2, 3)
    np.testing.assert_allclose(made.norms, 0.5 * vectors.at([1, 2, 3]).norms, rtol=1e-5)
    sets = {"warm": frozenset({(3, 1), (9, -1)}), "terse": frozenset({(4, 1)})}
    write_node_sets(tmp_path / "n.csv", sets, 2)
    assert read_node_sets(tmp_path / "n.csv") == {(name, 2): nodes for name, nodes in sets.items()}


def test_bad_input(tiny, tmp_path):
    lm = tiny()
    vectors = make_vectors(lm)
    with pytest.raises(ValueError, match="choose one, as"):
        block_additions(vectors)
    with pytest.raises(ValueError, match="layer 0 is what enters"):
        block_additions(vectors["warm"], layers=[0, 1])
    with pytest.raises(ValueError, match="which is layer 1 here"):
        write_gguf(tmp_path / "v.gguf", vectors["warm"], lm, layers=[1, 2])
    with pytest.raises(FileNotFoundError):
        read_gguf(tmp_path / "none.gguf", lm)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 9)
    with pytest.raises(ValueError, match="cut short"):
        read_gguf(tmp_path / "broken.gguf", lm)
    write_gguf(tmp_path / "v.gguf", vectors["warm"], lm)
    with pytest.raises(ValueError, match="for a model of type llama"):
        read_gguf(tmp_path / "v.gguf", tiny("gpt-2"))
    with pytest.raises(ValueError, match=r"has 32 nodes and blocks 0 to 2"):
        from_blocks({7: np.ones(32, np.float32)}, lm)
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    with pytest.raises(ValueError, match="cut short"):
        read_blocks(tmp_path / "cut.safetensors")
