"""Ray Serve deployments of a holder of shards and of the gateway."""

from __future__ import annotations

import asyncio

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from csrtrain.scale.merging import Hits
from csrtrain.scale.serving import Gateway, Holder, Lookup

MOST_LOOKUPS = 64  # in one batch


class ServedHolder(Holder):
    """Lookups that come while others are searched are gathered and searched together."""

    @serve.batch(max_batch_size=MOST_LOOKUPS, batch_wait_timeout_s=0)
    async def search(self, lookups: list[Lookup]) -> list[Hits]:
        """See `search_all`."""
        return await asyncio.to_thread(self.search_all, lookups)


class ServedGateway(Gateway):
    """Asks again after what Ray raises when a process or a node dies."""

    failures = (RayError, RayServeException)
