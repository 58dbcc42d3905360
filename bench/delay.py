"""A TCP proxy that is as far away as another country: every byte comes later by half of a round trip."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    # call_later keeps the order of equal delays only where none is due at the same tick: a queue keeps it always.
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def send() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                target.close()
                return
            target.write(data)

    sending = asyncio.create_task(send())
    try:
        while data := await source.read(65536):
            queue.put_nowait((loop.time() + delay, data))
    except ConnectionError:
        pass  # the other end is told below
    queue.put_nowait((loop.time() + delay, b""))
    await sending


async def _listen(address: str, round_trip: float) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(round_trip)  # the handshake, which this machine's kernel has done in no time
        there_reader, there_writer = await asyncio.open_connection(address, 22)
        both = (reader, there_writer), (there_reader, writer)
        await asyncio.gather(*(_pass_on(source, target, round_trip / 2) for source, target in both))

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@contextmanager
def delayed(address: str, round_trip: float) -> Iterator[int]:
    """Serve the SSH port of `address` on a port of 127.0.0.1, `round_trip` seconds away; yield that port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(_listen(address, round_trip), loop).result(10)
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
