"""The settings of a server, the same for each of its worker processes."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

HANDED_ON = "CSRKERN_SERVE"  # environment variable that the worker processes are told by
KEY = "CSRKERN_API_KEY"


@dataclass(frozen=True)
class Settings:
    """The files to serve, and the limits of requests.

    Attributes:
        index: folder of the index.
        model: adapter of embeddings; None: the one that the index remembers.
        text_model: of texts; None: the one that the index remembers.
        payloads: file with a row for each document; None: hits have ids and scores only.
        filter_by: fields of payloads that requests may filter by.
        threads: of one search.
        api_key_file: file of the key; None: `CSRKERN_API_KEY`, or no key.
        max_body: bytes of a request.
        max_queries: queries of a request.
        max_top_k: hits of a query.
        concurrency: requests that a process works on or holds at a time.
        timeout: seconds for one request.
    """

    index: str
    model: str | None = None
    text_model: str | None = None
    payloads: str | None = None
    filter_by: tuple[str, ...] = ()
    threads: int = 1
    api_key_file: str | None = None
    max_body: int = 8 << 20
    max_queries: int = 1024
    max_top_k: int = 1000
    concurrency: int = 64
    timeout: float = 30.0

    def hand_on(self) -> None:
        """Put them where `handed_on` finds them in processes that this one starts."""
        os.environ[HANDED_ON] = json.dumps(dataclasses.asdict(self))

    @classmethod
    def handed_on(cls) -> Settings:
        """Return the settings of the process that started this one."""
        fields = json.loads(os.environ[HANDED_ON])
        return cls(**{**fields, "filter_by": tuple(fields["filter_by"])})

    def key(self) -> bytes | None:
        """Return the key that requests must have; None: they need none.

        Raises:
            OSError: if its file cannot be read.
            ValueError: if the key is empty or has spaces or characters that are not ASCII.
        """
        if self.api_key_file is not None:
            name, key = self.api_key_file, Path(self.api_key_file).read_text().strip()
        elif KEY in os.environ:
            name, key = KEY, os.environ[KEY].strip()
        else:
            return None
        if not key or not all("!" <= character <= "~" for character in key):
            raise ValueError(f"{name}: expected a key of ASCII letters, digits and signs on a line")
        return key.encode()
