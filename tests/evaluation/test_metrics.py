"""Rankings, probes and the comparison against direct computations and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from csrkern.codes.packed import packed_k
from csrkern.codes.sparse import SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.evaluation.baselines import int8, search_binary
from csrtrain.evaluation.comparison import (
    Task,
    compare_adapter,
    compare_codes,
    compare_dense,
    compare_omp,
    compare_quantizers,
)
from csrtrain.evaluation.metrics import Judgments, linear_probe, search, v_measure
from csrtrain.training.matryoshka import train_matryoshka

pytestmark = pytest.mark.usefixtures("one_thread")


def clusters(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    centers = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(8, (n,), generator=generator)
    return centers[labels] + 0.6 * torch.randn(n, 16, generator=generator), labels


def test_published_bug_2_the_ideal_of_ndcg_counts_what_was_not_found():
    """One of five relevant documents found, in the first place: 0.339, not 1."""
    qrels = Judgments([(0, document, 1) for document in range(5)], 1)
    ids = np.array([[0, 90, 91, 92, 93, 94, 95, 96, 97, 98]])
    ideal = sum(1 / np.log2(rank + 1) for rank in range(1, 6))
    assert qrels.ndcg(ids) == pytest.approx(1 / ideal)
    assert qrels.ndcg(ids) < 0.34


def test_scores_of_a_small_ranking():
    qrels = Judgments([(0, 1, 2), (0, 2, 1), (1, 5, 1), (2, 3, 0)], 4)
    ids = np.array([[7, 1, 2], [5, 6, 7], [3, 3, 3], [-1, -1, -1]])
    log3, log2_4 = 1 / np.log2(3), 1 / np.log2(4)
    first = (2 * log3 + log2_4) / (2 + log3)
    assert qrels.ndcg(ids) == pytest.approx((first + 1) / 2)
    assert qrels.recall(ids, 2) == pytest.approx((0.5 + 1) / 2)
    assert qrels.mrr(ids) == pytest.approx((0.5 + 1) / 2)
    assert qrels.mrr(ids, 1) == pytest.approx(0.5)
    assert (qrels.hits(ids, 1), qrels.hits(ids, 2)) == (0.5, 1.0)


def judged(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(40)[:15] for _ in range(12)])
    rows = [
        (q, d, int(rng.integers(0, 4))) for q in range(12) for d in rng.permutation(40)[:8].tolist()
    ]
    return ids, np.array([*rows, *((q, 39 - q, 3) for q in range(12))])


def unique(rows: np.ndarray) -> dict[int, dict[int, int]]:
    table: dict[int, dict[int, int]] = {}
    for q, d, grade in rows.tolist():
        table.setdefault(q, {})[d] = grade
    return table


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_those_of_ranx(seed):
    ranx = pytest.importorskip("ranx")
    ids, rows = judged(seed)
    table = unique(rows)
    ours = Judgments([(q, d, g) for q, ds in table.items() for d, g in ds.items()], 12)
    qrels = ranx.Qrels({str(q): {str(d): g for d, g in ds.items() if g} for q, ds in table.items()})
    run = ranx.Run(
        {str(q): {str(d): 1.0 / (r + 1) for r, d in enumerate(row)} for q, row in enumerate(ids)}
    )
    names = ["ndcg@10", "recall@10", "mrr@10"]
    theirs = ranx.evaluate(qrels, run, names)
    got = [ours.ndcg(ids), ours.recall(ids, 10), ours.mrr(ids)]
    assert got == pytest.approx([theirs[name] for name in names])


@pytest.mark.parametrize("seed", range(3))
def test_ndcg_equals_that_of_scikit_learn(seed):
    ndcg_score = pytest.importorskip("sklearn.metrics").ndcg_score
    ids, rows = judged(seed)
    ours = Judgments([(q, d, g) for q, ds in unique(rows).items() for d, g in ds.items()], 12)
    grades, scores = np.zeros((12, 40)), np.zeros((12, 40))
    for q, documents in unique(rows).items():
        grades[q, list(documents)] = list(documents.values())
    np.put_along_axis(scores, ids, np.arange(15, 0, -1.0), 1)
    assert ours.ndcg(ids) == pytest.approx(ndcg_score(grades, scores, k=10))


def test_judgements_that_do_not_fit():
    with pytest.raises(ValueError, match="rows of \\(query, document, grade\\)"):
        Judgments([(1, 2, 3, 4)], 2)
    with pytest.raises(ValueError, match=r"queries in 0\.\.1, got 2"):
        Judgments([(2, 1, 1)], 2)
    with pytest.raises(ValueError, match=r"documents in 0\.\.4, got 5"):
        Judgments([(1, 4, 1), (1, 5, 0)], 2, 5)
    with pytest.raises(ValueError, match=r"documents in 0\.\., got -1"):
        Judgments([(1, -1, 1)], 2)
    with pytest.raises(ValueError, match="at least one relevant"):
        Judgments([(0, 1, 0)], 2)


def test_search_is_by_cosine_on_either_kind():
    x, _ = clusters(60, 1)
    q, _ = clusters(9, 2)
    scores = F.normalize(q, dim=1) @ F.normalize(x, dim=1).T
    assert np.array_equal(search(x, q, 5), scores.topk(5, 1).indices.numpy())
    codes, asked = (SparseCodes.from_dense(side.clamp(min=0), 16) for side in (x, q))
    dense = F.normalize(q.clamp(min=0), dim=1) @ F.normalize(x.clamp(min=0), dim=1).T
    found = torch.from_numpy(search(codes, asked, 3))
    torch.testing.assert_close(dense.gather(1, found), dense.topk(3, 1).values, atol=1e-3, rtol=0)
    assert search(x, torch.zeros(1, 16), 3).tolist() == [[-1, -1, -1]]


def test_rows_of_a_norm_beyond_float32_are_named():
    rows = torch.ones(3, 4)
    rows[1] = 1e30
    with pytest.raises(ValueError, match=r"embeddings: expected norms .* row 1 has more"):
        search(rows, torch.ones(1, 4), 2)


def test_int8_keeps_all_but_a_step():
    x, _ = clusters(500, 1)
    kept = int8(x, x)
    span = x.amax(0) - x.amin(0)
    inside = (kept - x).abs() <= span / 255
    assert float(inside.float().mean()) > 0.99


@given(seed=st.integers(0, 20), top_k=st.sampled_from([1, 4]))
@settings(max_examples=10)
def test_binary_search_with_the_whole_database_as_shortlist_is_exact(seed, top_k):
    x, q = (clusters(n, seed + n)[0] for n in (70, 6))
    mean = x.mean(0)
    signs = torch.where(x > mean, 1.0, -1.0)
    best = ((q - mean) @ signs.T).topk(top_k, 1)
    found = torch.from_numpy(search_binary(x, q, mean, top_k, shortlist=70))
    scores = ((q - mean) @ signs.T).gather(1, found)
    torch.testing.assert_close(scores, best.values)
    few = torch.from_numpy(search_binary(x, q, mean, top_k, shortlist=top_k))
    hamming = ((q - mean).sign()[:, None] != signs[None]).sum(2)
    assert int(hamming.gather(1, few).max()) <= int(hamming.topk(top_k, 1, largest=False)[0].max())


@pytest.mark.parametrize("given", [None, "labels", "partners"])
def test_a_matryoshka_adapter_moves_what_matters_to_the_front(given):
    """The last of 16 dimensions hold the clusters; the first hold little."""
    (x, y), (q, q_labels) = clusters(600, 1), clusters(200, 2)
    fade = torch.logspace(-2, 0, 16)
    x, q = x * fade, q * fade
    alike = torch.empty_like(y)
    for label in y.unique():
        (members,) = (y == label).nonzero(as_tuple=True)
        alike[members] = members.roll(1)
    more = {"labels": y, "partners": x[alike]}
    options = {name: value for name, value in more.items() if name == given}
    adapter = train_matryoshka(x, [4], **options, steps=200, batch_size=100, lr=1e-2)
    task = Task(x, q, y, q_labels)
    by = {result.active: result.scores["1-nn"] for result in compare_adapter(task, adapter, [4])}
    plain = task.scores(search(x[:, :4], q[:, :4], 1))["1-nn"]
    assert by[4] > plain + 0.1


def test_probes_tell_clusters_from_noise():
    pytest.importorskip("sklearn")
    (x, y), (q, q_labels) = clusters(300, 1), clusters(150, 2)
    noise = torch.randn(300, 16), torch.randn(150, 16)
    assert linear_probe(x, y, q, q_labels) > linear_probe(noise[0], y, noise[1], q_labels) + 0.3
    assert v_measure(q, q_labels) > v_measure(noise[1], q_labels) + 0.2
    codes = [SparseCodes.from_dense(side.clamp(min=0), 16) for side in (x, q)]
    assert linear_probe(codes[0], y, codes[1], q_labels) > 0.6
    assert 0 < v_measure(codes[1], q_labels) <= 1


@pytest.mark.parametrize("judgments", [False, True])
def test_a_comparison_is_at_equal_dims_and_bytes(judgments):
    (x, y), (q, q_labels) = clusters(300, 1), clusters(50, 2)
    qrels = Judgments([(i, int(j), 1) for i in range(50) for j in (y == q_labels[i]).nonzero()], 50)
    task = Task(x, q, judgments=qrels) if judgments else Task(x, q, y, q_labels)
    torch.manual_seed(0)
    model = SparseAutoencoder(16, 64, 4)
    results = [
        *compare_dense(task, x, [2, 4]),
        *compare_codes(task, model, [2, 4]),
        *compare_quantizers(task, x, [4, 2, 8], ["RaBitQ-1", "TurboQuant-4"]),
    ]
    sizes = {(r.method, r.active): r.bytes_per_vector for r in results}
    assert len(sizes) == len(results)
    assert sizes["dense", 16] == 32
    assert sizes["int8", 16] == 16
    assert sizes["binary, re-scored", 16] == 2
    assert sizes["PCA", 4] == sizes["CSR", 2] == sizes["top-k, untrained", 2] == 8
    assert sizes["PCA int8", 8] == 8
    # All of 16 dimensions take 2 bytes and a scale, or 8 bytes: the larger sizes are no others.
    assert sizes["RaBitQ-1", 16] == 4
    assert sizes["TurboQuant-4", 16] == 8
    names = {name for name, _ in sizes if name.startswith("CSR")}
    asymmetric = (
        "",
        ", refitted",
        ", adapter, refitted",
        ", uint8",
        ", packed",
        ", adapter, packed",
    )
    modes = ("", ", roots", *(f", asymmetric{mode}" for mode in asymmetric))
    assert names == {f"CSR{mode}" for mode in modes}
    assert sizes["CSR, asymmetric, uint8", 5] == 15
    assert 14 <= sizes["CSR, asymmetric, adapter, packed", packed_k(16, 64)] <= 16
    main = "ndcg@10" if judgments else "1-nn"
    for result in results:
        assert next(iter(result.scores)) == main
        assert all(0 <= score <= 1 for score in result.scores.values())
    best = {r.method: r.scores[main] for r in results}
    assert best["dense"] > 0.6


def test_omp_codes_are_compared_in_both_spaces():
    (x, y), (q, q_labels) = clusters(200, 1), clusters(50, 2)
    torch.manual_seed(0)
    results = [*compare_omp(Task(x, q, y, q_labels), SparseAutoencoder(16, 64, 4), [2, 4], "it")]
    assert {(r.method, r.active) for r in results} == {
        (f"it, asymmetric{space}, OMP{form}", active)
        for space in ("", ", adapter")
        for k in (2, 4)
        for form, active in (("", k), (", packed", packed_k(4 * k, 64)))
    }
    assert all(r.bytes_per_vector <= 16 for r in results)
    assert min(r.main for r in results) > 0.5


def test_asymmetric_scores_are_those_of_the_reconstructions():
    (x, y), (q, q_labels) = clusters(200, 1), clusters(50, 2)
    torch.manual_seed(0)
    model = SparseAutoencoder(16, 64, 4, standardize=True)
    results = {r.method: r for r in compare_codes(Task(x, q, y, q_labels), model, [4])}
    found = results["CSR, asymmetric"]
    rebuilt = model(x)[0].detach()
    nearest = (F.normalize(q, dim=1) @ F.normalize(rebuilt, dim=1).T).argmax(1)
    expected = float((y[nearest] == q_labels).float().mean())
    assert found.scores["1-nn"] == pytest.approx(expected, abs=0.021)
