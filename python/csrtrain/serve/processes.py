"""The processes of a server: one that listens, or several on one address and one mapped index."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from types import FrameType

import uvicorn

from csrtrain.serve.metrics import SHARED
from csrtrain.serve.settings import Settings

GRACE_SECONDS = 30
HUNG_SECONDS = 60  # after which a worker is replaced; it may read payloads for long


def free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0.

    Raises:
        OSError: if another program has it, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}; choose another --host or --port", f"{host}:{port}"
            ) from error
        return int(probe.getsockname()[1])


def run(settings: Settings, host: str, port: int, workers: int) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what has been asked, and return."""
    settings.hand_on()
    signal.signal(signal.SIGTERM, _stopped)  # uvicorn raises it again when all is answered
    with tempfile.TemporaryDirectory(prefix="csrkern-serve-") as counts:
        if workers > 1:
            os.environ[SHARED] = counts
        uvicorn.run(
            "csrtrain.serve.application:handed_on",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_worker_healthcheck=HUNG_SECONDS,
        )


def _stopped(signal: int, frame: FrameType | None) -> None:
    sys.exit(0)
