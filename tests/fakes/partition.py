"""A network between two programs from which packets can vanish: dropped, not refused."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any


class Partition:
    """A way to a port of this machine. While packets vanish, every connection stays open, and nothing comes through.

    Args:
        to: The port that it leads to.

    Attributes:
        port: Where it begins, on 127.0.0.1.
    """

    def __init__(self, to: int):
        self._to, self._through = to, threading.Event()
        self._through.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> Partition:
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._carry, "127.0.0.1", 0), self._loop)
        self._server = listening.result(30)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *error: Any) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._server.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def vanish(self) -> None:
        """Let every packet vanish from now on; those that are under way are lost for good."""
        self._through.clear()

    def heal(self) -> None:
        """Let packets through again. Connections from before stay dead: each has lost some of its own."""
        self._through.set()

    async def _carry(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        broken = not self._through.is_set()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far, forth = await asyncio.open_connection("127.0.0.1", self._to)
            link = {"broken": broken}
            await asyncio.gather(self._pipe(near, forth, link), self._pipe(far, back, link))

    async def _pipe(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, link: dict[str, bool]) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                link["broken"] |= not self._through.is_set()
                if not link["broken"]:
                    target.write(data)
                    await target.drain()
            if not link["broken"]:
                target.close()
