#!/usr/bin/env python3
"""The inverted index on a GPU: equal to the one on the CPU, then queries a second beside peers.

    python benchmarks/gpu/index.py --out build/gpu/index.json [--sizes 100k 1M 10M 100M]

Codes are those of benchmarks.harness.generators, h = 16,384, k = 32; above a million they are
drawn on the GPU by the same laws (100M: k = 16, if it fits). A time is the median of replays of a
CUDA graph over several sets of queries, beside peers in the same run: a bfloat16 GEMM over
1024-wide embeddings and topk (cuBLAS), PyTorch's sparse CSR times CSR and topk (512 queries, 100
warm-ups, 1.3M codes, the paper's protocol), and scatter-add into [batch, n] and topk. A
measurement that the results file has for this commit is not repeated.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu import generators_gpu
from benchmarks.harness import generators
from benchmarks.harness.provenance import commit, versions
from csrkern import CudaIndex, InvertedIndex, SparseCodes

DIM, K, TOP_K, WIDTH = 16_384, 32, 10, 1024
SIZES = {"100k": 100_000, "1M": 1_000_000, "10M": 10_000_000, "100M": 100_000_000}
BATCHES = (1, 32, 256, 1024)
PAPER_CODES, PAPER_QUERIES, PAPER_WARM_UPS = 1_300_000, 512, 100
# GPUSparse (arXiv 2606.26441): the size of MS MARCO's passages, in codes as long as SPLADE's are on
# average, by the skewed law. All of a kind are as long as that here; real ones vary.
SPLADE_CODES, SPLADE_DIM, SPLADE_TERMS, SPLADE_QUERY_TERMS = 8_841_823, 30_522, 119, 43
SPLADE_QUERIES, SPLADE_PUBLISHED = 500, 787.0  # a batch; queries a second, on an H100
QUERY_SETS = 8  # so that no lists stay in a cache for being asked for again
SCATTER_BYTES = 16 << 30  # of [batch, n] scores that the scatter-add peer may hold


def on_gpu(codes: generators.Codes, dim: int = DIM) -> SparseCodes:
    """NumPy codes as SparseCodes on the GPU."""
    values, indices = (torch.from_numpy(array).cuda() for array in codes)
    return SparseCodes(values, indices, dim)


def median_us(run: Callable[[int], Any], replays: int = 30) -> float:
    """The median time of one call, in microseconds; `run(i)` uses the i-th set of queries."""
    for i in range(3):
        run(i)
    torch.cuda.synchronize()
    graphs = []
    # One memory for all: the scores of a dense product are 20 GB, and nobody reads results.
    pool = torch.cuda.graph_pool_handle()
    try:
        for i in range(QUERY_SETS):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                run(i)
            graphs.append(graph)
        call: Callable[[int], Any] = lambda i: graphs[i % QUERY_SETS].replay()  # noqa: E731
    except RuntimeError as error:
        print(f"not captured, launched: {error}", file=sys.stderr)
        graphs.clear()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        call = run
    times = []
    for i in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call(i)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def equal_to_cpu(codes: generators.Codes, queries: generators.Codes, index: CudaIndex) -> None:
    """Ids and bits of scores are those of the CPU, whichever way documents are scored."""
    cpu = InvertedIndex.build(codes, dim=DIM, metric="ip", cluster=False)
    there = on_gpu(queries)
    for top_k in (1, TOP_K, 1000):
        scores, ids = cpu.search(queries, top_k)
        for way in ("walk", "gather", "cheaper"):
            found = index.search(there, top_k, way=way)
            if not (
                np.array_equal(found[1].cpu().numpy(), ids)
                and np.array_equal(found[0].cpu().numpy(), scores)
            ):
                raise SystemExit(f"top_k {top_k}, {way}: differs from the CPU")


def ours(index: CudaIndex, sets: list[SparseCodes], top_k: int = TOP_K) -> Callable[[int], Any]:
    """A search of the i-th set of queries."""
    return lambda i: index.search(sets[i % QUERY_SETS], top_k)


def strongest(codes: SparseCodes, k: int) -> SparseCodes:
    """The k largest values of each code: queries of the same law as the documents, but shorter."""
    return SparseCodes(
        codes.values[:, :k].contiguous(), codes.indices[:, :k].contiguous(), codes.dim
    )


def dense_peer(n: int, batch: int) -> Callable[[int], Any]:
    """bfloat16 embeddings of WIDTH numbers: GEMM, then topk."""
    documents = torch.randn(n, WIDTH, device="cuda", dtype=torch.bfloat16)
    sets = torch.randn(QUERY_SETS, batch, WIDTH, device="cuda", dtype=torch.bfloat16)
    return lambda i: torch.topk(sets[i % QUERY_SETS] @ documents.T, TOP_K)


def scatter_peer(codes: SparseCodes, sets: list[SparseCodes]) -> Callable[[int], Any]:
    """Lists by latent, padded to the batch's longest; scores [batch, n] by scatter-add; topk."""
    n = len(codes.values)
    by_latent = torch.argsort(codes.indices.flatten(), stable=True)
    rows, values = by_latent // codes.k, codes.values.flatten()[by_latent].float()
    counts = torch.bincount(codes.indices.flatten(), minlength=DIM)
    starts = counts.cumsum(0) - counts
    slots = torch.arange(int(counts.max()), device=codes.device)

    def run(i: int) -> Any:
        queries = sets[i % QUERY_SETS]
        scores = torch.zeros(len(queries.values), n, device=codes.device)
        for slot in range(queries.k):
            latents = queries.indices[:, slot].long()
            at = (starts[latents][:, None] + slots).clamp(max=len(rows) - 1)
            mine = slots < counts[latents][:, None]
            scores.scatter_add_(1, rows[at], queries.values[:, slot, None] * values[at] * mine)
        return torch.topk(scores, TOP_K)

    return run


def sparse_peer(codes: SparseCodes, sets: list[SparseCodes]) -> Callable[[int], Any]:
    """PyTorch's sparse CSR product (cuSPARSE), and topk of what it gives."""
    documents = as_csr(codes).t().to_sparse_csr()
    queries = [as_csr(one) for one in sets]
    return lambda i: torch.topk((queries[i % QUERY_SETS] @ documents).to_dense(), TOP_K)


def agree(found: Any, expected: Any) -> None:
    """A peer that is timed finds the same scores, up to the order of its sums."""
    ours, theirs = (torch.as_tensor(answers[0]).float().cpu() for answers in (found, expected))
    if not torch.allclose(ours.clamp(min=0), theirs.clamp(min=0), rtol=2e-3, atol=1e-4):
        raise SystemExit("a peer's scores differ from ours")


def as_csr(codes: SparseCodes) -> torch.Tensor:
    """A torch CSR tensor with sorted latents."""
    latents, order = codes.indices.long().sort(1)
    starts = torch.arange(len(latents) + 1, device=latents.device) * codes.k
    return torch.sparse_csr_tensor(
        starts,
        latents.flatten(),
        codes.values.gather(1, order).flatten().float(),
        (len(latents), DIM),
    )


def measurements(sizes: list[str]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names and what measures them, the smallest first."""
    for size in sizes:
        n = SIZES[size]
        for kind in ("uniform", "skewed"):
            k = 16 if n == SIZES["100M"] else K
            state: dict[str, Any] = {}

            def prepare(
                n: int = n, k: int = k, kind: str = kind, state: dict[str, Any] = state
            ) -> None:
                if state:
                    return
                gc.collect()
                torch.cuda.empty_cache()
                if n > 1_000_000:
                    law = generators_gpu.LAWS[kind](DIM, k, "cuda")
                    state["index"] = CudaIndex.build(law(n, 0), metric="ip")
                    state["draw"] = law
                    return
                draw = getattr(generators, kind)
                host = draw(n, DIM, k, seed=0)
                state["codes"] = on_gpu(host)
                state["index"] = CudaIndex.build(state["codes"], metric="ip")
                state["draw"] = lambda m, seed: on_gpu(draw(m, DIM, k, seed=seed))
                equal_to_cpu(host, draw(64, DIM, k, seed=1), state["index"])

            for batch in BATCHES:

                def measure(
                    n: int = n,
                    batch: int = batch,
                    state: dict[str, Any] = state,
                    prepare: Callable[[], None] = prepare,
                ) -> dict[str, Any]:
                    prepare()
                    sets = [state["draw"](batch, 100 + i) for i in range(QUERY_SETS)]
                    us = median_us(ours(state["index"], sets))
                    peers = {}
                    if n <= 10_000_000:
                        peers["bf16 GEMM + topk"] = median_us(dense_peer(n, batch), 10)
                    if n <= 1_000_000 and 4 * n * batch <= SCATTER_BYTES:
                        peers["scatter-add + topk"] = median_us(
                            scatter_peer(state["codes"], sets), 5
                        )
                    return {
                        "us": us,
                        "queries_per_s": batch / us * 1e6,
                        "peers_us": peers,
                        "stats": state["index"].stats(),
                    }

                yield f"{size} {kind} batch {batch}", measure
            state.clear()

    def paper() -> dict[str, Any]:
        codes = on_gpu(generators.uniform(PAPER_CODES, DIM, K, seed=0))
        sets = [
            on_gpu(generators.uniform(PAPER_QUERIES, DIM, K, seed=100 + i))
            for i in range(QUERY_SETS)
        ]
        index = CudaIndex.build(codes, metric="ip")
        us = median_us(ours(index, sets))
        sparse = sparse_peer(codes, sets)
        agree(index.search(sets[0], TOP_K), sparse(0))
        for i in range(PAPER_WARM_UPS):
            sparse(i)
        # It allocates what it finds, so a graph cannot hold it.
        peers = {"sparse CSR x CSR + topk": median_us(sparse, 10)}
        return {"us": us, "queries_per_s": PAPER_QUERIES / us * 1e6, "peers_us": peers}

    yield "1.3M uniform batch 512 (the paper's protocol)", paper

    splade: dict[str, Any] = {}
    for top_k in (10, 1000):

        def like_splade(top_k: int = top_k) -> dict[str, Any]:
            if not splade:
                law = generators_gpu.Skewed(SPLADE_DIM, SPLADE_TERMS, "cuda")
                splade["index"] = CudaIndex.build(law(SPLADE_CODES, 0), metric="ip")
                drawn = (law(SPLADE_QUERIES, 100 + i) for i in range(QUERY_SETS))
                splade["sets"] = [strongest(codes, SPLADE_QUERY_TERMS) for codes in drawn]
            us = median_us(ours(splade["index"], splade["sets"], top_k))
            return {
                "us": us,
                "queries_per_s": SPLADE_QUERIES / us * 1e6,
                "published_queries_per_s": SPLADE_PUBLISHED,
                "peers_us": {},
                "stats": splade["index"].stats(),
            }

        yield f"8.8M like SPLADE's batch {SPLADE_QUERIES} top {top_k}", like_splade


def main() -> None:
    """Measures what is not yet in the results; prints the table last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["100k", "1M", "10M"])
    options = parser.parse_args()
    here = commit()
    results: dict[str, Any] = {
        "commit": here,
        "versions": versions(),
        "device": torch.cuda.get_device_name(),
        "rows": {},
    }
    if options.out and options.out.exists():
        before = json.loads(options.out.read_text())
        results = before if before["commit"] == here else results
    for name, measure in measurements(options.sizes):
        if name in results["rows"]:
            continue
        try:
            results["rows"][name] = measure()
        except MemoryError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        if options.out:
            beside = options.out.with_suffix(".new")
            beside.write_text(json.dumps(results, indent=1))
            beside.replace(options.out)
    for name, row in results["rows"].items():
        peers = "  ".join(f"{peer} {us / row['us']:.1f}x" for peer, us in row["peers_us"].items())
        print(f"{name:46} {row['us']:9.1f} us {row['queries_per_s']:12,.0f} queries/s  {peers}")


if __name__ == "__main__":
    main()
