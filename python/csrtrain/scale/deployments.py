"""Ray Serve deployments of a holder of shards and of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from csrtrain.scale.folder import Folder
from csrtrain.scale.serving import Found, Gateway, Holder, Lookup

MOST_LOOKUPS = 64  # in one batch


class ServedHolder(Holder):
    """A holder that gathers the lookups of a moment and searches them together."""

    def __init__(
        self, folder: Folder, threads: int, group: int, groups: int, refresh: float
    ) -> None:
        super().__init__(folder, threads, group, groups)
        threading.Thread(target=self._watch, args=(refresh,), daemon=True).start()

    def _watch(self, refresh: float) -> None:
        while True:
            time.sleep(refresh)
            with contextlib.suppress(Exception):  # the next look may succeed
                self.look()

    @serve.batch(max_batch_size=MOST_LOOKUPS, batch_wait_timeout_s=0)
    async def search(self, lookups: list[Lookup]) -> list[Found]:
        """See `search_all`."""
        return await asyncio.to_thread(self.search_all, lookups)

    async def prepare(self, number: int) -> bool:
        """See `open_group`."""
        return await asyncio.to_thread(self.open_group, number)


class ServedGateway(Gateway):
    """A gateway that asks again when Ray reports that a process or a node died."""

    failures = (RayError, RayServeException)
