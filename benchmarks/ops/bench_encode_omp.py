"""encode_omp against scikit-learn's orthogonal matching pursuit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.harness.race import Contestant, Missing, Race, cases
from csrkern import roofline
from csrkern.nn import SparseAutoencoder
from csrtrain import encode_omp

Case = tuple[int, int, int, int]  # n, d, h, k
ROUNDS = 8


@cases(
    tiny=[(8, 16, 32, 4)],
    quick=[(500, 384, 1024, 16)],
    full=[(2000, 384, 1024, 8), (2000, 384, 4096, 16), (2000, 768, 8192, 32)],
)
def bench_encode_omp(race: Race, case: Case) -> None:
    """Both choose k rows of one dictionary for each of n vectors; ours keeps values positive.

    The vectors are positive sums of 2k rows with noise. Ours takes them in 8 turns, the peer one
    at a time. `unexplained` is the share of the variance that the codes leave over.
    """
    n, d, h, k = case
    model = SparseAutoencoder(d, h, k).eval()
    dictionary = torch.nn.functional.normalize(torch.randn(h, d), dim=1)
    with torch.no_grad():
        model.dictionary.copy_(dictionary)
        for parameter in (model.pre_bias, model.latent_bias):
            parameter.zero_()
    choices = torch.rand(n, h).topk(2 * k, 1).indices
    x = torch.einsum("nk,nkd->nd", torch.rand(n, 2 * k), dictionary[choices])
    x += 0.1 * torch.randn(n, d)
    with torch.no_grad():
        sums = model.decode(encode_omp(model, x, k, rounds=ROUNDS))

    def left_over(found: torch.Tensor) -> dict[str, float]:
        return {"unexplained": round(float((x - found).square().sum() / x.var(0).sum() / n), 4)}

    race(
        "encode_omp",
        f"B={n} d={d} h={h} k={k}",
        ours=Contestant(lambda: encode_omp(model, x, k, rounds=ROUNDS), left_over(sums)),
        peers={"scikit-learn": _scikit_learn(x.numpy(), dictionary.numpy(), k, left_over)},
        cost=roofline.encode_omp(n, d, h, k, min(ROUNDS, k)),
    )


def _scikit_learn(
    x: np.ndarray,
    dictionary: np.ndarray,
    k: int,
    left_over: Callable[[torch.Tensor], dict[str, float]],
) -> Contestant | Missing:
    try:
        from sklearn.linear_model import orthogonal_mp_gram
    except ImportError:
        return Missing("scikit-learn is not installed")
    gram = dictionary @ dictionary.T

    def run() -> np.ndarray:
        return orthogonal_mp_gram(gram, dictionary @ x.T, n_nonzero_coefs=k)

    return Contestant(run, left_over(torch.from_numpy(run().T @ dictionary)))
