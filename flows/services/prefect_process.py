"""The process of a temporary Prefect server: it imports the server, waits to be told, and then serves.

    python -m factsmith.flows.services.prefect_process

Importing the server takes seconds, in which the command that needs it imports what it needs itself. Nothing is written
before a line arrives on stdin. The port is then printed, once the server answers. Without a line, the process ends.
"""

from __future__ import annotations

import socket
import sys
import warnings

__all__ = ["main"]


def main() -> None:
    """Import, wait, serve."""
    # The folder is made by the command, after it has checked its input.
    warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")
    import uvicorn
    from prefect.server.api.server import create_app

    if not sys.stdin.readline():
        return

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(listening.getsockname()[1], flush=True)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        Server(uvicorn.Config(create_app, factory=True, log_level="error", lifespan="on")).run([listening])


if __name__ == "__main__":
    main()
