"""Dense queries in both spaces of a model: what an index scores is what reconstructions give."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from csrkern import InvertedIndex, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.pca import PCA
from csrtrain.training.subspace import Subspace

D = 12


@pytest.fixture
def made() -> tuple[torch.Tensor, Subspace, SparseAutoencoder, SparseAutoencoder]:
    """Rows off the origin, a map of them, a model of mapped rows, and the same folded."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(D, D, generator=generator) * torch.linspace(2, 0.1, D)
    x = 3 + torch.randn(300, D, generator=generator) @ mixing
    subspace = Subspace(PCA(x), D - 3, 0.5)
    small = SparseAutoencoder(D - 3, 40, 4)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return x, subspace, small, subspace.fold(small)


@pytest.mark.parametrize("space", ["embeddings", "adapter"])
def test_an_index_scores_cosines_of_reconstructions(made, space):
    x, subspace, small, model = made
    documents, queries = x[:250], x[250:]
    codes = model.encode(documents)
    rebuilt = model.decode(codes).detach()
    center, seen = torch.zeros(D), lambda rows: rows
    if space == "adapter":
        center, seen = small.pre_bias.detach(), subspace.project
    expected = cosine_similarity(
        seen(queries)[:, None] - center, seen(rebuilt)[None] - center, dim=2
    )
    norms = model.norms(codes, space)
    index = InvertedIndex.build(codes, norms=norms.numpy(), dtype="float32", metric="ip")
    asked = model.rerank(queries, shortlist=250, space=space)
    scores, ids = index.search(model.encode(queries), top_k=5, rerank=asked)
    found = torch.from_numpy(scores)
    best = expected.gather(1, torch.from_numpy(ids))
    # Scores lack the norm of the query, one factor a row.
    ratio = found / best
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=2e-4, atol=0)
    assert bool((ratio > 0).all())
    # All that share a latent with the query are candidates; of these, the best are found.
    shared = torch.from_numpy((model.encode(queries).to_dense() @ codes.to_dense().T > 0).numpy())
    right = torch.where(shared, expected, -torch.inf).topk(5, 1).values
    torch.testing.assert_close(best, right, rtol=1e-4, atol=1e-5)


def test_norms_of_nothing_are_positive(made):
    model = made[3]
    nothing = SparseCodes(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.int32), 40)
    for space in model.spaces:
        assert bool((model.norms(nothing, space) > 0).all())
    np.testing.assert_allclose(
        model.norms(nothing).numpy(), float(model.pre_bias.detach().norm()), rtol=1e-5
    )
    for space in model.spaces:  # of a float64 model, too, in the float32 of an index
        assert bool((model.double().norms(nothing, space).float() > 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_and_queries_of_any_dtype(made, dtype):
    """Far from the origin, where norms and products are beyond float16."""
    x, subspace, model, folded = made
    assert folded.to(dtype).spaces == ("embeddings", "adapter")
    q, model = subspace.project(x[:20]).to(dtype), model.to(dtype)
    with torch.no_grad():
        model.pre_bias.add_(500)
    wide = copy.deepcopy(model).double()
    codes = model.encode(q + 500)
    for space in model.spaces:
        torch.testing.assert_close(
            model.norms(codes, space).double(),
            wide.norms(codes.to(dtype=torch.float64), space),
            rtol=1e-4,
            atol=0,
        )
        found, expected = model.rerank(q, 9, space), wide.rerank(q.double(), 9, space)
        torch.testing.assert_close(
            found.dense_queries.double(), expected.dense_queries, rtol=1e-5, atol=1e-3
        )


def test_queries_may_be_an_array(made):
    model, q = SparseAutoencoder(D, 40, 4), made[0][:7].float()
    found, expected = model.rerank(q.numpy().astype(np.float64)), model.rerank(q)
    assert torch.equal(found.dense_queries, expected.dense_queries)
    with pytest.raises(ValueError, match=r"q: expected embeddings of shape \[n, d\], got \[2\]"):
        model.rerank(np.zeros(2))


def test_a_tied_model_differs_by_its_centre_alone():
    torch.manual_seed(0)
    model, x = SparseAutoencoder(D, 40, 4), torch.randn(50, D)
    codes = model.encode(x)
    assert model.spaces == ("embeddings", "adapter")
    torch.testing.assert_close(model.norms(codes, "adapter"), model.norms(codes))  # pre_bias is 0
    torch.testing.assert_close(
        model.rerank(x, space="adapter").dense_queries, model.rerank(x).dense_queries
    )


def test_models_without_the_space_say_so(made):
    apart = SparseAutoencoder(D, 40, 4, tied=False)
    with torch.no_grad():
        apart.decoder.linear.weight.add_(torch.randn(40, D))
    assert apart.spaces == ("embeddings",)
    codes = apart.encode(made[0])
    apart.norms(codes)
    for ask in (lambda: apart.norms(codes, "adapter"), lambda: apart.rerank(made[0], 9, "adapter")):
        with pytest.raises(ValueError, match="trained apart"):
            ask()
    standardized = SparseAutoencoder(D, 40, 4, standardize=True)
    assert standardized.spaces == ()
    with pytest.raises(ValueError, match="does not standardize"):
        standardized.norms(codes)
    with pytest.raises(ValueError, match="'embeddings', 'adapter'"):
        apart.norms(codes, "elsewhere")
