"""A delaying relay: every byte between two TCP ends takes as long as on a far link.

    python -m bench.relay LISTEN_HOST:PORT TARGET_HOST:PORT ONE_WAY_SECONDS

The rate is the kernel's to limit (tbf on the link); kernels without netem have nothing that delays.
A connection is opened as late as its first packet would arrive. Ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

PIECE_BYTES = 256 << 10
# Bytes under way in one direction of one connection: 200 Mbit/s for 10 ms are 250 kB.
WINDOW_PIECES = 64


async def one_way(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
) -> None:
    """Pass bytes on, each piece `delay_s` after it came."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WINDOW_PIECES)

    async def arrive() -> None:
        while True:
            due, data = await under_way.get()
            if (left := due - loop.time()) > 0:
                await asyncio.sleep(left)
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as both:
        both.create_task(arrive())
        while True:
            data = await reader.read(PIECE_BYTES)
            await under_way.put((loop.time() + delay_s, data))
            if not data:
                return


async def serve(listen: str, target: str, delay_s: float) -> None:
    """Relay until standard input ends."""
    host, port = target.rsplit(":", 1)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * delay_s)  # SYN and its answer
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(
                one_way(reader, there_writer, delay_s), one_way(there_reader, writer, delay_s)
            )
        except (OSError, ExceptionGroup, RuntimeError):
            pass  # an end that went away: the other one is told by the close
        finally:
            there_writer.close()
            writer.close()

    own_host, own_port = listen.rsplit(":", 1)
    async with await asyncio.start_server(connection, own_host, int(own_port)):
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2], float(sys.argv[3])))
