"""A TCP proxy that adds latency: it delays every byte by half a round trip."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


async def _forward(source: asyncio.StreamReader, target: asyncio.StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    # A queue keeps the order of the data; call_later does not for equal times.
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def send() -> None:
        while True:
            at, data = await queue.get()
            await asyncio.sleep(at - loop.time())
            if not data:
                target.close()
                return
            target.write(data)

    sending = asyncio.create_task(send())
    try:
        while data := await source.read(65536):
            queue.put_nowait((loop.time() + delay, data))
    except ConnectionError:
        pass  # the other side is closed below
    queue.put_nowait((loop.time() + delay, b""))
    await sending


async def _listen(address: str, round_trip: float) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(round_trip)  # the TCP handshake, which is instant on this machine
        far_reader, far_writer = await asyncio.open_connection(address, 22)
        both = (reader, far_writer), (far_reader, writer)
        await asyncio.gather(*(_forward(source, target, round_trip / 2) for source, target in both))

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@contextmanager
def delayed(address: str, round_trip: float) -> Iterator[int]:
    """Yield a local port that forwards to the SSH port of `address` with a round trip of `round_trip` seconds."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(_listen(address, round_trip), loop).result(10)
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
