"""Codes of benchmarks.harness.generators, drawn by PyTorch: ten million in seconds on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.harness import generators
from csrkern import SparseCodes

_CHUNK = 1_000_000


class Uniform:
    """Codes of `generators.uniform`, as float16; called with how many and a seed."""

    def __init__(self, dim: int, k: int, device: str) -> None:
        self.dim, self.k, self.device = dim, k, device

    def __call__(self, n: int, seed: int) -> SparseCodes:
        generator = torch.Generator(self.device).manual_seed(seed)
        values = torch.empty(n, self.k, dtype=torch.float16, device=self.device)
        indices = torch.empty(n, self.k, dtype=torch.int32, device=self.device)
        for begin in range(0, n, _CHUNK):
            rows = slice(begin, min(begin + _CHUNK, n))
            drawn, latents = self._chunk(rows.stop - begin, generator)
            drawn /= torch.linalg.norm(drawn, dim=1, keepdim=True)
            values[rows], order = drawn.half().sort(1, descending=True, stable=True)
            indices[rows] = latents.gather(1, order).int()
        return SparseCodes(values, indices, self.dim)

    def _chunk(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Values float32 and distinct latents int64 [rows, k], latents ascending."""
        values = 0.05 + self._exponential(rows, self.k, generator)
        latents = torch.zeros(rows, self.k, dtype=torch.int64, device=self.device)
        draw_distinct(
            latents,
            0,
            lambda n: torch.randint(self.dim, (n,), generator=generator, device=self.device),
        )
        return values, latents.sort(1)[0]

    def _exponential(self, rows: int, columns: int, generator: torch.Generator) -> Tensor:
        return torch.empty(rows, columns, device=self.device).exponential_(generator=generator)


class Skewed(Uniform):
    """Codes of `generators.skewed`, likewise."""

    def __init__(self, dim: int, k: int, device: str) -> None:
        super().__init__(dim, k, device)
        law = generators.skew_law(dim, k, 0)
        self._latents, self._strengths, self._uses, self._cumulative = (
            torch.from_numpy(array).to(device) for array in law
        )

    def _chunk(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        n_own = round(0.8 * self.k)
        of = torch.multinomial(self._uses, rows, replacement=True, generator=generator)
        strengths = self._strengths[of]
        uniforms = torch.rand(strengths.shape, generator=generator, device=self.device)
        gumbel = -torch.log(-torch.log(uniforms.clamp(1e-7, 1 - 1e-7)))
        own = torch.topk(torch.log(strengths) + 0.7 * gumbel, n_own, dim=1)[1]
        spread = torch.randn(rows, n_own, generator=generator, device=self.device)
        values = strengths.gather(1, own) * torch.exp(0.5 * spread)
        free = 0.05 + 0.4 * self._exponential(rows, self.k - n_own, generator)
        latents = torch.zeros(rows, self.k, dtype=torch.int64, device=self.device)
        latents[:, :n_own] = self._latents[of].gather(1, own)

        def draw(n: int) -> Tensor:
            at = torch.rand(n, generator=generator, device=self.device, dtype=torch.float64)
            return torch.searchsorted(self._cumulative, at).clamp(max=self.dim - 1)

        draw_distinct(latents, n_own, draw)
        latents, order = latents.sort(1)
        return torch.cat([values, free], 1).gather(1, order), latents


def draw_distinct(latents: Tensor, first: int, draw: Callable[[int], Tensor]) -> None:
    """Fills the columns from `first` on; again where a row has a latent twice."""
    again = torch.zeros(latents.shape, dtype=torch.bool, device=latents.device)
    again[:, first:] = True
    while bool(again.any()):
        latents[again] = draw(int(again.sum()))
        ordered, order = latents.sort(1, stable=True)
        again.zero_()
        again.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])


LAWS = {"uniform": Uniform, "skewed": Skewed}
