"""scikit-learn's own checks, and both estimators where scikit-learn's are used."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import scipy.sparse as sp
import torch

joblib = pytest.importorskip("joblib")
sklearn = pytest.importorskip("sklearn", minversion="1.6", reason="pip install 'csrkern[sklearn]'")
from sklearn.base import clone  # noqa: E402
from sklearn.cluster import DBSCAN  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.manifold import Isomap  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.neighbors import (  # noqa: E402
    KNeighborsClassifier,
    KNeighborsTransformer,
    NearestNeighbors,
)
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from csrkern import InvertedIndex, SparseCodes  # noqa: E402
from csrkern.integrations.sklearn import CSRNeighborsTransformer  # noqa: E402
from csrtrain.sklearn import CSRTransformer  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"k": 4, "hidden_dim": 64, "steps": 12}


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 200)
    centers = rng.normal(size=(4, 16))
    return (centers[y] + 0.2 * rng.normal(size=(200, 16))).astype(np.float32), y


@pytest.fixture(scope="module")
def codes() -> SparseCodes:
    generator = torch.Generator().manual_seed(0)
    return SparseCodes.from_dense(torch.rand(120, 40, generator=generator), k=5)


@pytest.mark.parametrize(
    "estimator",
    [
        CSRTransformer(k=2, steps=2),
        CSRTransformer(k=2, steps=2, contrast="label"),
        CSRNeighborsTransformer(n_neighbors=2),
    ],
    ids=str,
)
def test_every_check_of_scikit_learn(estimator):
    results = check_estimator(estimator, on_skip=None)
    by_status = {r["status"]: [] for r in results}
    for result in results:
        by_status[result["status"]].append(result["check_name"])
    # Skipped: only what needs another array library to be installed.
    assert set(by_status) <= {"passed", "skipped"}, by_status
    assert all("array_api" in name for name in by_status.get("skipped", []))
    assert len(by_status["passed"]) > 30


def test_codes_are_those_of_the_trainer(rows):
    x, _ = rows
    transformer = CSRTransformer(**SMALL).fit(x)
    codes = transformer.transform(x)
    assert isinstance(codes, sp.csr_array)
    assert codes.shape == (200, 64)
    assert codes.dtype == np.float32
    expected = transformer.model_.encode(torch.from_numpy(x)).to_scipy()
    assert abs(codes - expected).max() == 0
    assert list(transformer.get_feature_names_out()[:2]) == ["csrtransformer0", "csrtransformer1"]


def test_a_code_stands_for_its_embedding(rows):
    x, _ = rows
    transformer = CSRTransformer(**SMALL | {"steps": 60}).fit(x)
    back = transformer.inverse_transform(transformer.transform(x))
    assert back.shape == x.shape
    assert np.square(back - x).sum() < 0.3 * np.square(x - x.mean(0)).sum()
    with pytest.raises(ValueError, match="64 latents, got 3"):
        transformer.inverse_transform(np.ones((2, 3)))


def test_in_a_pipeline_with_a_grid_search(rows):
    x, y = rows
    pipeline = make_pipeline(CSRTransformer(**SMALL), LogisticRegression())
    search = GridSearchCV(pipeline, {"csrtransformer__k": [2, 4]}, cv=2).fit(x, y)
    assert search.best_score_ > 0.9
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    assert (again.predict(x) == search.predict(x)).all()


def test_labels_of_any_kind_and_settings_by_name(rows):
    x, y = rows
    names = np.array(["ant", "bee", "cat", "dog"])[y]
    transformer = CSRTransformer(**SMALL, contrast="label", config={"gamma": 0.5}).fit(x, names)
    same = clone(transformer).fit(x, y)
    assert torch.equal(transformer.model_.encoder.weight, same.model_.encoder.weight)
    preset = CSRTransformer(k=4, hidden_dim=64, steps=3, preset="csrv2", contrast="self")
    assert preset.fit(x).transform(x).shape == (200, 64)
    with pytest.raises(ValueError, match="requires y"):
        clone(transformer).fit(x)
    with pytest.raises(ValueError, match="preset"):
        CSRTransformer(preset="nothing").fit(x)
    with pytest.raises(TypeError, match="no_such"):
        CSRTransformer(config={"no_such": 1}).fit(x)


def missing(y: np.ndarray, value: object, dtype: object = None) -> np.ndarray:
    y = y.astype(dtype)
    y[3] = value
    return y


BAD_CLASSES = {
    "nan": lambda y: missing(y, np.nan, float),
    "inf": lambda y: missing(y, np.inf, float),
    "None": lambda y: missing(y, None, object),
    "None among names": lambda y: missing(np.array(list("abcd"))[y], None, object),
    "NaN among names": lambda y: missing(np.array(list("abcd"))[y], np.nan, object),
    "continuous": lambda y: y + np.linspace(0, 0.5, len(y)),
    "too few": lambda y: y[:7],
    "one-hot": lambda y: np.eye(4)[y],
}


@pytest.mark.parametrize("name", BAD_CLASSES)
def test_classes_are_refused_as_a_classifier_does(rows, name):
    x, y = rows
    y = BAD_CLASSES[name](y)
    with pytest.raises((ValueError, TypeError)) as expected:
        LogisticRegression().fit(x, y)
    with pytest.raises(ValueError, match=re.escape(str(expected.value))):
        CSRTransformer(**SMALL, contrast="label").fit(x, y)
    CSRTransformer(**SMALL | {"steps": 2}).fit(x, y)  # to which y means nothing


def test_parameters_of_numpy_types(rows):
    x, y = rows
    pipeline = make_pipeline(CSRTransformer(**SMALL), LogisticRegression())
    grid = {
        "csrtransformer__k": np.array([2, 4]),
        "csrtransformer__hidden_dim": np.array([32], np.int32),
        "csrtransformer__steps": np.arange(3, 5),
        "csrtransformer__random_state": np.array([1], np.uint8),
    }
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(x, y)
    k = search.best_params_["csrtransformer__k"]
    transformer = search.best_estimator_[0]
    assert transformer.get_params()["k"] is transformer.k
    assert transformer.k == k
    again = CSRTransformer(int(k), hidden_dim=32, steps=int(transformer.steps), random_state=1)
    assert abs(again.fit(x).transform(x) - transformer.transform(x)).max() == 0
    for name, wrong in {"k": 2.0, "steps": True, "hidden_dim": "64"}.items():
        with pytest.raises(TypeError, match=f"{name}: expected an int"):
            CSRTransformer(**SMALL | {name: wrong}).fit(x)
    with pytest.raises(ValueError, match="random_state: expected 0 <="):
        CSRTransformer(**SMALL, random_state=-1).fit(x)


@pytest.mark.parametrize("n_jobs", [1, 2, -1, -2, -100, np.int64(2), None])
def test_jobs_are_joblibs(codes, n_jobs):
    threads: list[object] = []

    class Spied(InvertedIndex):
        def search(self, *args, num_threads=None, **options):
            threads.append(num_threads)
            return super().search(*args, num_threads=num_threads, **options)

    neighbors = CSRNeighborsTransformer(n_jobs=n_jobs).fit(codes)
    neighbors.index_.__class__ = Spied
    expected = CSRNeighborsTransformer().fit(codes).kneighbors(codes)
    assert np.array_equal(neighbors.kneighbors(codes)[1], expected[1])
    assert threads == [None if n_jobs is None else joblib.effective_n_jobs(n_jobs)]


def test_jobs_that_joblib_refuses(codes):
    with pytest.raises(ValueError, match="n_jobs == 0"):
        CSRNeighborsTransformer(n_jobs=0).fit(codes)
    for wrong in (1.5, "2", True):
        with pytest.raises(TypeError, match="n_jobs: expected an int"):
            CSRNeighborsTransformer(n_jobs=wrong).fit(codes)


FORMS = {
    "csr_array": sp.csr_array,
    "csc_matrix": sp.csc_matrix,
    "coo_array": sp.coo_array,
    "lil_array": sp.lil_array,
    "float64": lambda m: m.astype(np.float64),
    "dense": lambda m: m.toarray(),
    "dense float64": lambda m: m.toarray().astype(np.float64),
    "long indices": lambda m: sp.csr_array(
        (m.data, m.indices.astype(np.int64), m.indptr.astype(np.int64)), m.shape
    ),
    "lists": lambda m: m.toarray().tolist(),
    "SparseCodes": SparseCodes.from_scipy,
}


@pytest.mark.parametrize("name", FORMS)
def test_codes_in_every_form(codes, name):
    matrix = codes.to_scipy()
    expected = CSRNeighborsTransformer().fit(codes).kneighbors(codes)
    form = FORMS[name](matrix)
    found = CSRNeighborsTransformer().fit(form).kneighbors(form)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_embeddings_in_every_form(rows):
    x, _ = rows
    expected = CSRTransformer(**SMALL).fit(x)
    for form in (x.astype(np.float64), np.asfortranarray(x), x.tolist(), x.astype(">f4")):
        transformer = CSRTransformer(**SMALL).fit(form)
        assert abs(transformer.transform(form) - expected.transform(x)).max() == 0
    codes = expected.transform(x)
    for form in (SparseCodes.from_scipy(codes), codes.toarray(), codes.tocsc()):
        back = expected.inverse_transform(form)
        assert np.array_equal(back, expected.inverse_transform(codes))
    with pytest.raises(ValueError, match="contains NaN"):
        expected.inverse_transform(np.full((1, 64), np.nan))
    with pytest.raises(ValueError, match="negative"):
        expected.inverse_transform(-codes)


def test_names_of_columns_and_outputs(rows):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows[0], columns=[f"width {i}" for i in range(16)])
    transformer = CSRTransformer(**SMALL).fit(frame)
    assert transformer.feature_names_in_.tolist() == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        transformer.transform(frame[frame.columns[::-1]])
    again = pickle.loads(pickle.dumps(transformer))
    assert abs(again.transform(frame) - transformer.transform(frame)).max() == 0
    # As of every transformer whose output is sparse.
    with pytest.raises(ValueError, match="scipy sparse matrix"):
        transformer.set_output(transform="pandas").transform(frame)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_no_distance_is_below_zero(dtype):
    generator = torch.Generator().manual_seed(3)
    codes = SparseCodes.from_dense(torch.rand(300, 50, generator=generator), k=7)
    neighbors = CSRNeighborsTransformer(dtype=dtype).fit(codes)
    distances, _ = neighbors.kneighbors(codes, 3)
    assert distances.min() >= 0
    assert neighbors.transform(codes).data.min() >= 0


@pytest.mark.parametrize("wanted", [1, 7, 119])
def test_neighbours_are_those_of_brute_force(codes, wanted):
    matrix = codes.to_scipy()
    ours = CSRNeighborsTransformer().fit(codes)
    theirs = NearestNeighbors(metric="cosine", algorithm="brute").fit(matrix)
    for queries in (matrix[:30], None):
        distances, numbers = ours.kneighbors(queries, wanted)
        expected, _ = theirs.kneighbors(queries, wanted)
        np.testing.assert_allclose(distances, expected, atol=2e-6)
        dense = (matrix if queries is None else queries).toarray()
        unit = dense / np.linalg.norm(dense, axis=1, keepdims=True)
        other = matrix.toarray() / np.linalg.norm(matrix.toarray(), axis=1, keepdims=True)
        exact = 1 - np.take_along_axis(unit @ other.T, numbers, 1)
        np.testing.assert_allclose(distances, exact, atol=2e-6)
        assert all(len(set(row)) == wanted for row in numbers.tolist())
        if queries is None:
            assert (numbers != np.arange(120)[:, None]).all()


def test_what_shares_no_latent_is_at_distance_one():
    matrix = sp.csr_array(np.eye(4, dtype=np.float32))
    neighbors = CSRNeighborsTransformer(n_neighbors=3).fit(matrix)
    distances, numbers = neighbors.kneighbors(matrix[[2]])
    assert distances.tolist() == [[0, 1, 1]]
    assert numbers.tolist() == [[2, 0, 1]]
    distances, numbers = neighbors.kneighbors(None, 2)
    assert (distances == 1).all()
    assert numbers.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_equal_codes_are_each_others_neighbours():
    matrix = sp.csr_array(np.ones((5, 3), np.float32))
    distances, numbers = CSRNeighborsTransformer().fit(matrix).kneighbors(None, 2)
    np.testing.assert_allclose(distances, 0, atol=1e-6)
    assert numbers.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]


@pytest.mark.parametrize("mode", ["distance", "connectivity"])
def test_the_graph_is_that_of_scikit_learn(codes, mode):
    matrix = codes.to_scipy()
    theirs = KNeighborsTransformer(n_neighbors=4, mode=mode, metric="cosine", algorithm="brute")
    ours = CSRNeighborsTransformer(n_neighbors=4, mode=mode)
    expected, graph = theirs.fit_transform(matrix), ours.fit_transform(codes)
    assert graph.shape == expected.shape
    assert graph.nnz == expected.nnz
    np.testing.assert_allclose(graph.toarray(), expected.toarray(), atol=2e-6)
    assert abs(ours.kneighbors_graph(None, 4) - theirs.kneighbors_graph(None, 4)).max() == 0


def test_in_front_of_estimators_that_take_neighbours(rows):
    x, y = rows
    front = (CSRTransformer(**SMALL), CSRNeighborsTransformer(n_neighbors=10))
    classifier = make_pipeline(*front, KNeighborsClassifier(5, metric="precomputed"))
    assert cross_val_score(classifier, x, y, cv=2).mean() > 0.9
    graph = make_pipeline(*front).fit_transform(x)
    clusters = DBSCAN(eps=0.4, metric="precomputed").fit_predict(graph)
    for cluster in set(clusters) - {-1}:
        assert len(set(y[clusters == cluster])) == 1
    isomap = Isomap(n_neighbors=5, metric="precomputed")
    assert make_pipeline(*front, isomap).fit_transform(x[y == 0]).shape == ((y == 0).sum(), 2)


def test_an_index_of_many_codes_is_clustered_and_keeps_its_numbers():
    generator = torch.Generator().manual_seed(1)
    codes = SparseCodes.from_dense(torch.rand(70, 30, generator=generator), k=4)
    neighbors = CSRNeighborsTransformer().fit(codes)
    neighbors.index_ = InvertedIndex.build(
        codes, metric="cosine", dtype="float32", cluster=True, window=64
    )
    expected = CSRNeighborsTransformer().fit(codes).kneighbors(None, 5)
    found = neighbors.kneighbors(None, 5)
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def test_bad_input_is_explained(codes):
    with pytest.raises(ValueError, match="Negative values"):
        CSRNeighborsTransformer().fit(-np.ones((3, 2)))
    with pytest.raises(ValueError, match="mode: expected"):
        CSRNeighborsTransformer(mode="far").fit(codes)
    fitted = CSRNeighborsTransformer().fit(codes)
    with pytest.raises(ValueError, match="n_neighbors = 121, n_samples_fit = 120"):
        fitted.kneighbors(codes, 121)
    with pytest.raises(ValueError, match="the row itself"):
        fitted.kneighbors(None, 120)
    with pytest.raises(TypeError, match="n_neighbors: expected an int"):
        fitted.kneighbors(codes, 2.5)
    with pytest.raises(ValueError, match="mode: expected"):
        fitted.kneighbors_graph(codes, mode="far")
    for wrong in (2.5, "3", True):
        with pytest.raises(TypeError, match="n_neighbors: expected an int"):
            CSRNeighborsTransformer(n_neighbors=wrong).fit(codes).transform(codes)
    with pytest.raises(ValueError, match="n_neighbors: expected 1 <="):
        CSRNeighborsTransformer(n_neighbors=0).fit(codes).transform(codes)
    with pytest.raises(ValueError, match="30 features"):
        fitted.kneighbors(np.ones((1, 30)))
