import numpy as np
import pytest
from sided import make_acts

from utils.statements.contrasts import find_contrasts, restrict
from utils.vectors.differences import find_directions
from utils.vectors.fit import PersonaVectors, persona_vectors


def fitted(**options):
    acts = make_acts()
    return persona_vectors(acts, find_contrasts(acts), **options)


def test_mean_difference_is_the_difference_of_the_sides_means():
    acts = make_acts()
    vectors = persona_vectors(acts, find_contrasts(acts), layers=[2])
    own = acts.sel(layer=2).isel(statement=acts["persona"].to_numpy() == "b")
    side = own["direction"].to_numpy()
    expected = own.values[side == "positive"].mean(0) - own.values[side == "negative"].mean(0)
    np.testing.assert_allclose(vectors["b"].values[0, 0], expected, atol=1e-6)
    lengths = np.linalg.norm(acts.sel(layer=2).values, axis=1)
    np.testing.assert_allclose(vectors.norms, [lengths.mean()], rtol=1e-6)
    found = vectors.lengths.set_index("persona")["length"]
    np.testing.assert_allclose(found["b"], np.linalg.norm(expected) / lengths.mean(), rtol=1e-5)


@pytest.mark.parametrize("method", ["mean-difference", "ridge", "pca"])
def test_every_method_finds_a_planted_node_and_gives_the_way_between_the_sides_as_length(method):
    vectors = fitted(method=method)
    for place, name in enumerate(vectors.personas):
        own = vectors[name].at(2)
        assert np.abs(own.units[0, 0]).argmax() == place
        assert own.values[0, 0, place] > 0
        assert np.linalg.norm(own.values) == pytest.approx(2.0, rel=0.25)
        assert np.linalg.norm(vectors[name].at(0).values) < 1.0


def test_ridge_weights_are_those_of_scikit_learn():
    from sklearn.linear_model import Ridge

    differences = np.random.default_rng(1).normal(size=(20, 50)) + 0.3
    spread = np.sqrt((differences**2).sum(axis=0))
    model = Ridge(alpha=2.0 * 50 / 20, fit_intercept=False).fit(differences / spread, np.ones(20))
    found = find_directions(differences, np.ones((1, 20)), method="ridge", ridge=2.0)[0]
    expected = model.coef_ / spread
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=1e-9)


def test_the_first_component_does_not_depend_on_flips_but_for_its_sign():
    differences = np.random.default_rng(1).normal(size=(20, 8)) + 0.5
    signs = np.random.default_rng(2).choice([-1.0, 1.0], size=(5, 20))
    found = find_directions(differences, signs, method="pca")
    for row, own in zip(found, signs, strict=True):
        alone = find_directions(own[:, None] * differences, np.ones((1, 20)), method="pca")[0]
        np.testing.assert_allclose(row, alone, atol=1e-9)


def test_arithmetic():
    vectors = fitted()
    a, b = vectors["a"], vectors["b"]
    np.testing.assert_allclose((a + b).values, a.values + b.values)
    np.testing.assert_allclose((a - b).values, a.values - b.values)
    np.testing.assert_allclose((2 * -a).values, -2 * a.values)
    assert (a + b).personas == ("a + b",)
    assert (a - b).personas == ("a + -b",)
    assert (vectors + b).personas == ("a + b", "b + b")
    assert (a + b).seen == vectors.seen
    left = a.without(b)
    np.testing.assert_allclose((left.values * b.values).sum(axis=2), 0, atol=1e-5)
    # What was taken away lies along b.
    taken = (a.values - left.values)[1, 0]
    assert abs(taken @ b.units[1, 0]) == pytest.approx(np.linalg.norm(taken), rel=1e-4)
    np.testing.assert_allclose(a.without(a).values, 0, atol=1e-6)


def test_the_orthogonal_set_is_orthogonal_and_nearer_than_gram_schmidt():
    vectors = fitted().at([1, 2])
    mixed = vectors + 0.8 * vectors["a"]
    made = mixed.orthogonalised()
    for layer in range(2):
        gram = made.units[layer] @ made.units[layer].T
        np.testing.assert_allclose(gram, np.eye(2), atol=1e-6)
        q, r = np.linalg.qr(mixed.units[layer].T)
        by_steps = (q * np.sign(np.diag(r))).T
        assert ((made.units[layer] - mixed.units[layer]) ** 2).sum() < ((by_steps - mixed.units[layer]) ** 2).sum()
    np.testing.assert_allclose(np.linalg.norm(made.values, axis=2), np.linalg.norm(mixed.values, axis=2), rtol=1e-5)
    with pytest.raises(ValueError, match="depend on each other"):
        (vectors["a"] + 0 * vectors).orthogonalised()


def test_saved_vectors_come_back_as_they_were(tmp_path):
    vectors = fitted(method="ridge")
    vectors.save(tmp_path / "v.safetensors")
    read = PersonaVectors.load(tmp_path / "v.safetensors")
    assert np.array_equal(read.values, vectors.values)
    assert np.array_equal(read.norms, vectors.norms)
    assert (read.layers, read.personas, read.record, read.seen) == (
        vectors.layers,
        vectors.personas,
        vectors.record,
        vectors.seen,
    )
    assert "made up" in repr(read)
    assert len(repr(read)) < 150
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "v.safetensors").read_bytes()[:-20])
    with pytest.raises(ValueError, match="make it again"):
        PersonaVectors.load(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError):
        PersonaVectors.load(tmp_path / "none.safetensors")


def test_only_what_was_fitted_on_counts_as_seen():
    acts = make_acts()
    keep = np.isin(acts["pair"].to_numpy(), ["a-0", "a-1", "a-2"])
    vectors = persona_vectors(acts, [restrict(find_contrasts(acts, personas=["a"])[0], keep)])
    assert {name for name in vectors.seen if name.startswith("pair")} == {"pair a-0", "pair a-1", "pair a-2"}
    assert vectors.record["pairs"] == {"a": 3}


def test_bad_input():
    acts = make_acts()
    contrasts = find_contrasts(acts)
    with pytest.raises(ValueError, match="unknown persona 'neurotic'"):
        fitted()["neurotic"]
    with pytest.raises(ValueError, match=r"layers \[9\] were not extracted"):
        persona_vectors(acts, contrasts, layers=[9])
    with pytest.raises(ValueError, match=r"no vectors at layers \[9\]"):
        fitted().at(9)
    unpaired = make_acts(paired=False)
    with pytest.raises(ValueError, match="needs pairs"):
        persona_vectors(unpaired, find_contrasts(unpaired), method="ridge")
    with pytest.raises(ValueError, match="choose one position"):
        persona_vectors(acts.expand_dims(position=["last", "mean"]), contrasts)
    other = PersonaVectors(fitted().values, (0, 1, 2), ("a", "b"), fitted().norms, {"fingerprint": "other"})
    with pytest.raises(ValueError, match="do not share a space"):
        fitted() + other
    with pytest.raises(ValueError, match="not finite"):
        float("nan") * fitted()
