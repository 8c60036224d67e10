"""One connection, one command at a time: what is not complete closes it, and never becomes another's answer."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runnel._redis.link import Endpoint, Link
from runnel.errors import RedisError, RedisUnavailable

pytestmark = pytest.mark.anyio


async def test_answers_of_any_size_arrive_whole(link: Link, app_name: str) -> None:
    for size in (0, 1, 65_536, 3_000_000):
        await link.call("SET", app_name, b"\xff" * size)
        assert await link.call("GET", app_name) == b"\xff" * size
        assert link.reply_size >= size
    await link.call("DEL", app_name)


async def test_arguments_are_sent_as_they_are(link: Link, app_name: str) -> None:
    assert await link.call("RPUSH", app_name, "é", b"\x00\r\n", 7, 0.5) == 4
    assert await link.call("LRANGE", app_name, 0, -1) == ["é".encode(), b"\x00\r\n", b"7", b"0.5"]
    await link.call("DEL", app_name)


async def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(link: Link, app_name: str) -> None:
    with pytest.raises(RedisUnavailable, match="no answer in time"):
        await link.call("BLPOP", app_name, 5, timeout=0.05)
    assert await link.call("ECHO", "mine") == b"mine"


async def test_a_cancelled_call_leaves_nothing_for_the_next_one(link: Link, app_name: str) -> None:
    await link.call("PING")
    call = asyncio.create_task(link.call("BLPOP", app_name, 5))
    await asyncio.sleep(0.02)
    call.cancel()
    assert (await asyncio.gather(call, return_exceptions=True))[0].__class__ is asyncio.CancelledError
    assert await link.call("ECHO", "mine") == b"mine"


async def test_a_time_out_is_that_of_the_call_not_of_one_before(link: Link, app_name: str) -> None:
    await link.call("PING", timeout=0.05)
    assert await link.call("BLPOP", app_name, 0.2, timeout=5) is None


async def test_a_connection_that_the_server_ends_fails_once_and_is_made_anew(redis_url: str, link: Link) -> None:
    other = Link(Endpoint(redis_url), identify=True)
    await other.call("PING")
    first = other.client_id
    waiting = asyncio.create_task(other.call("BLPOP", f"nothing-{first}", 5))
    await asyncio.sleep(0.02)
    await link.call("CLIENT", "KILL", "ID", first)
    with pytest.raises(RedisUnavailable):
        await waiting
    assert await other.call("ECHO", "again") == b"again"
    assert other.client_id != first
    await other.close()


async def test_an_error_keeps_its_code_and_the_connection(redis_url: str, app_name: str) -> None:
    link = Link(Endpoint(redis_url), identify=True)
    await link.call("SET", app_name, "text")
    before = link.client_id
    with pytest.raises(RedisError, match=r"has something else under \"\S+\", or a key beside it \(WRONGTYPE "):
        await link.call("XLEN", app_name)
    with pytest.raises(RedisError, match=r"^unknown command"):
        await link.call("NOSUCHCOMMAND")
    await link.call("DEL", app_name)
    assert link.client_id == before
    await link.close()


async def test_what_nobody_asked_for_ends_the_connection(tmp_path: Path) -> None:
    """A server that answers twice: the second answer must not be taken for that of the next command."""
    socket = str(tmp_path / "twice.sock")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            for _ in range(data.count(b"*")):
                writer.write(b"+OK\r\n" if b"ECHO" not in data else b"$1\r\n1\r\n$1\r\n2\r\n")
        writer.close()

    server = await asyncio.start_unix_server(serve, socket)
    link = Link(Endpoint(f"unix://{socket}"))
    answers: list[bytes] = []
    for _ in range(6):
        try:
            answers.append(await link.call("ECHO", "1", timeout=2))
        except RedisUnavailable:
            continue
    assert answers
    assert set(answers) == {b"1"}
    await link.close()
    server.close()
    await asyncio.sleep(0)  # its side of the last connection ends as well
    await server.wait_closed()


async def test_an_answer_that_keeps_coming_is_awaited_for_as_long_as_it_takes() -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer_the_greeting(reader, writer)
        await reader.readuntil(b"GET")
        for byte in b"$10\r\n0123456789\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)

    async with listening(trickle) as url:
        slow = Link(Endpoint(url))
        assert await slow.call("GET", "x", timeout=0.2) == b"0123456789"
        await slow.close()


async def test_a_command_that_is_still_being_sent_is_not_overdue() -> None:
    size = 12_000_000

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer_the_greeting(reader, writer)
        received = 0
        while received < size:
            received += len(await reader.read(65_536))
            await asyncio.sleep(0.01)
        writer.write(b"+OK\r\n")
        await writer.drain()

    async with listening(swallow) as url:
        slow = Link(Endpoint(url))
        assert await slow.call("SET", "x", b"." * size, timeout=1) == b"OK"
        await slow.close()


async def test_a_peer_that_does_not_let_go_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of TLS it is an answer that a connection waits for when it is closed; here it is what the peer does not take."""
    monkeypatch.setattr("runnel._redis.link.CONNECT_TIMEOUT", 0.2)
    closed = asyncio.Event()

    async def stop_listening(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer_the_greeting(reader, writer)
        await reader.readuntil(b"PING")
        writer.write(b"+PONG\r\n")
        await closed.wait()
        writer.transport.abort()

    async with listening(stop_listening) as url:
        link = Link(Endpoint(url))
        assert await link.call("PING") == b"PONG"
        assert link._exchange is not None
        link._exchange._transport.write(b"." * 12_000_000)
        await link.close()
        closed.set()


async def answer_the_greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say OK to the two commands by which redis-py introduces itself."""
    heard = b""
    while heard.count(b"LIB-VER") < 1:
        heard += await reader.read(1000)
    writer.write(b"+OK\r\n+OK\r\n")


@asynccontextmanager
async def listening(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that is none, on a free port: its URL."""
    ended = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()
            ended.set()

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # or the kernel takes megabytes at once
    server = await asyncio.start_server(accept, sock=listener)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await ended.wait()
    finally:
        server.close()
