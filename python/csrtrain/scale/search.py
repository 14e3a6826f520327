"""A sharded index, served by Ray Serve and searched from Python or by HTTP."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from csrkern import Refine
from csrkern.arguments import check_int, float32_array
from csrkern.index.fine import check_probes
from csrkern.index.inverted import hits_width
from csrkern.index.rows import pad_rows, read_rows
from csrtrain.scale.cluster import import_ray
from csrtrain.scale.folder import Folder
from csrtrain.scale.merging import Hits
from csrtrain.scale.serving import PATIENCE, Answer, Request
from csrtrain.scale.shards import Generation, newest

APPLICATION = "csrkern"
GRACE = 0.25  # seconds after the deadline that an answer may still arrive


class ShardedIndex:
    """A sharded index on a Ray cluster."""

    def __init__(self, handle: Any, known: Generation) -> None:
        self._handle = handle
        self._known = known  # the newest that this process has seen

    @property
    def dim(self) -> int:
        """Number of latents."""
        return int(self._known.form["dim"])

    @classmethod
    def serve(
        cls,
        index: str | os.PathLike[str],
        *,
        replicas: int = 1,
        groups: int | None = None,
        threads: int = 1,
        gateways: int = 1,
        refresh: float = 1.0,
        name: str = APPLICATION,
        options: Mapping[str, Any] | None = None,
    ) -> ShardedIndex:
        """Deploy the holders and the gateway on the cluster that Ray is connected to.

        New generations are served as they are published: no request fails and none sees two.

        Args:
            index: folder of `build_shards` or `add_shard`.
            replicas: processes that hold the same shards; with 2 or more, answers stay complete
                when a process or a node dies.
            groups: processes that the shards are divided among; None: one for each shard, or as
                many as there are cores for.
            threads: used by a search of a process, which reserves as many cores.
            gateways: processes that merge.
            refresh: seconds between looks for a new generation.
            name: of the Ray Serve application.
            options: of the file system, as fsspec takes them.

        Raises:
            FileNotFoundError: if there is no sharded index.
            ValueError: if the cluster has too few cores.
            ImportError: without Ray.
        """
        ray = import_ray()
        from ray import serve

        from csrtrain.scale.deployments import MOST_LOOKUPS, ServedGateway, ServedHolder

        folder = Folder.of(index, options)
        initial = newest(folder)
        if not initial.shards:
            raise FileNotFoundError(f"no sharded index at {folder.url}; make one with build_shards")
        cores = int(ray.cluster_resources().get("CPU", 0))
        if groups is None:
            groups = max(1, min(len(initial.shards), cores // (replicas * threads)))
        check_int("groups", groups, 1, 10_000)
        if replicas * groups * threads > cores:
            raise ValueError(
                f"{groups} groups of {replicas} replicas with {threads} threads need "
                f"{replicas * groups * threads} cores; the cluster has {cores}"
            )
        deployment: Any = serve.deployment
        holder = deployment(ServedHolder)
        holders = [
            holder.options(
                name=f"holder-{number}",
                num_replicas=replicas,
                ray_actor_options={"num_cpus": threads},
                max_ongoing_requests=2 * MOST_LOOKUPS,
                health_check_period_s=1,
                health_check_timeout_s=5,
            ).bind(folder, threads, number, groups, refresh)
            for number in range(groups)
        ]
        gateway = deployment(ServedGateway).options(
            num_replicas=gateways, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0}
        )
        handle = serve.run(
            gateway.bind(folder, holders, refresh), name=name, route_prefix=f"/{name}"
        )
        return cls(handle, initial)

    @classmethod
    def connect(cls, name: str = APPLICATION) -> ShardedIndex:
        """Return the index that another process serves on this cluster."""
        import_ray()
        from ray import serve

        handle = serve.get_app_handle(name)
        current: Generation = handle.current.remote().result()
        return cls(handle, current)

    def search(
        self,
        queries: Any,
        top_k: int = 10,
        *,
        rerank: Refine | None = None,
        deadline: float = 10.0,
        any_model: bool = False,
    ) -> Answer:
        """Return the `top_k` best codes of all shards for each query.

        Args:
            queries: m codes in any form that `InvertedIndex.search` takes.
            top_k: hits a query.
            rerank: scores the best `rerank.shortlist` codes of all shards again, by their fine
                codes, as `InvertedIndex.search` does.
            deadline: seconds; shards that have not answered by then, or that nobody can read,
                are named in the answer.
            any_model: accept queries of another model than that of the shards.

        Raises:
            ValueError: if a query or an argument is not valid, the shards hold no fine codes to
                score by, or (ModelMismatchError) another model made the queries.
        """
        values, indices, fingerprint = _padded(queries, self.dim)
        if any_model:
            fingerprint = None
        return self._answer(values, indices, top_k, deadline, fingerprint, rerank)

    def search_fine(
        self,
        queries: Any,
        top_k: int = 10,
        *,
        probes: int | None = None,
        deadline: float = 10.0,
    ) -> Answer:
        """Return the best codes for embeddings, by the fine codes of all shards.

        Args:
            queries: [m, d], finite; see `InvertedIndex.search_fine`.
            probes: 1 to 256 cells to read, of all shards the same; see there, too. None: all.
            top_k, deadline: as for `search`.

        Raises:
            TypeError, ValueError: if a query or an argument is not valid, or the shards hold no
                fine codes.
        """
        rows, probes = float32_array("queries", queries), check_probes(probes)
        return self._answer(rows, None, top_k, deadline, None, probes=probes)

    def _answer(
        self,
        values: np.ndarray,
        indices: np.ndarray | None,
        top_k: int,
        deadline: float,
        fingerprint: str | None,
        rerank: Refine | None = None,
        probes: int | None = None,
    ) -> Answer:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        check_int("top_k", top_k, 1, 2**40)
        embeddings, shortlist = None, Refine.shortlist
        if rerank is not None:
            embeddings = float32_array("queries", rerank.queries)
            shortlist = check_int("shortlist", rerank.shortlist, 1, 2**40)
        until = time.monotonic() + deadline
        patience = PATIENCE * deadline  # then ask another gateway: this one's node may be gone
        while (remaining := until - time.monotonic()) > 0:
            try:
                facts = top_k, remaining, fingerprint, embeddings, shortlist, probes
                request = Request(values, indices, *facts)
                response = self._handle.search.remote(request)
                answer: Answer = response.result(timeout_s=patience or remaining + GRACE)
            except (ValueError, TypeError):
                raise
            except TimeoutError:
                response.cancel()
                patience = 0.0
                continue
            except (RayError, RayServeException):  # the gateway died; a search changes nothing
                time.sleep(min(0.05, max(0.0, until - time.monotonic())))
                continue
            return answer
        missing = tuple(shard.name for shard in self._known.shards)
        empty = Hits.none(len(values), hits_width(top_k, len(self._known)))
        return Answer(empty.scores, empty.ids, missing, self._known.number)

    def generation(self) -> Generation:
        """Return the facts of the index that is served at the moment."""
        self._known = self._handle.current.remote().result()
        return self._known


def _padded(queries: Any, dim: int) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Return queries as a pair of arrays [m, k], checked, and the fingerprint of their model."""
    rows = read_rows("queries", queries, dim)
    arrays = rows.values, rows.indices
    if rows.starts is not None:
        arrays = pad_rows(*arrays, np.diff(rows.starts), max(1, rows.k))
    return *arrays, rows.fingerprint
