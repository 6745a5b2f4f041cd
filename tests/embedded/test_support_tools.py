"""The test tools themselves: the Redis server fixture and the misbehaving proxy."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
import trio
import trio.testing

from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy, serve_tcp_proxy


@contextlib.asynccontextmanager
async def proxied(server: RedisServer) -> AsyncIterator[TcpProxy]:
    """A proxy in front of `server`, ended with the block."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            proxy: TcpProxy = await nursery.start(serve_tcp_proxy, ("127.0.0.1", server.port))
            yield proxy
            nursery.cancel_scope.cancel()


async def ask(stream: trio.SocketStream, line: bytes) -> bytes:
    """Send one inline command and return the reply; empty when the connection ended."""
    await stream.send_all(line + b"\r\n")
    try:
        return bytes(await stream.receive_some(65536))
    except trio.BrokenResourceError:
        return b""


async def silent(stream: trio.SocketStream, line: bytes, wait_s: float = 0.15) -> bool:
    """Say whether a command gets no reply, and no end of the connection either, for a while."""
    with trio.move_on_after(wait_s) as scope:
        await ask(stream, line)
    return scope.cancelled_caught


def test_data_survives_kill9_and_restart(redis_server: RedisServer) -> None:
    """A killed server comes back on the same address with what was written."""
    with contextlib.closing(redis.Redis.from_url(redis_server.url, decode_responses=True)) as client:
        client.set("job", "1")
        first = redis_server.pid
        redis_server.kill9()
        redis_server.restart()
        assert redis_server.pid != first
        assert client.get("job") == "1"
        redis_server.restart(kill=True)
        assert client.get("job") == "1"


def test_a_paused_server_holds_its_connections(redis_server: RedisServer) -> None:
    """A paused server answers nothing until it is resumed, and can be stopped or killed while paused."""
    with contextlib.closing(redis.Redis.from_url(redis_server.url, socket_timeout=0.1, retry=None)) as client:
        client.ping()
        redis_server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        redis_server.resume()
        assert client.ping()
    redis_server.pause()


def test_unix_server_starts_quickly(tmp_path: Path) -> None:
    """A server on a unix socket is usable within a fraction of a second."""
    begun_s = time.monotonic()
    with RedisServer(tmp_path, unix=True) as server:
        assert time.monotonic() - begun_s < 2.0  # typically 0.03; the bound is for a loaded machine
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            assert client.ping()


def test_the_shared_server_is_reachable(redis_url: str) -> None:
    """The session's server is there for every test."""
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        assert client.ping()


async def test_the_proxy_forwards_both_ways_even_what_is_large(redis_server: RedisServer) -> None:
    """Bytes pass unchanged in both directions, over several chunks."""
    async with proxied(redis_server) as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        body = b"x" * 1_000_000
        await stream.send_all(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%s\r\n" % (len(body), body))
        assert await stream.receive_some() == b"+OK\r\n"
        await stream.send_all(b"GET k\r\n")
        reply = b""
        while len(reply) < len(body) + 12:
            reply += await stream.receive_some()
        assert reply == b"$1000000\r\n%s\r\n" % body
        assert (proxy.connections_accepted, proxy.connections_open) == (1, 1)


@pytest.mark.parametrize("hang", [False, True])
async def test_a_dropped_reply_belongs_to_an_executed_request(redis_server: RedisServer, hang: bool) -> None:
    """The request takes effect once, its reply is lost once, and later requests are answered."""
    async with proxied(redis_server) as proxy:
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            dropped = proxy.drop_next_reply_matching(lambda request: b"INCR" in request, hang=hang)
            assert await ask(stream, b"PING") == b"+PONG\r\n"
            if hang:
                assert await silent(stream, b"INCR n")
                assert await silent(stream, b"PING")
            else:
                assert await ask(stream, b"INCR n") == b""
            await dropped.wait()
            assert dropped.request == b"INCR n\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            assert await ask(stream, b"INCR n") == b":2\r\n"


async def test_a_request_in_two_pieces_is_still_matched(redis_server: RedisServer) -> None:
    """The predicate sees everything since the last reply, however the bytes were cut."""
    async with proxied(redis_server) as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        dropped = proxy.drop_next_reply_matching(lambda request: b"INCR" in request)
        await stream.send_all(b"IN")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await ask(stream, b"CR n") == b""
        assert dropped.happened


async def test_cut_all_ends_connections_and_welcomes_new_ones(redis_server: RedisServer) -> None:
    """Every open connection ends, also a half-open one; the next connect works."""
    async with proxied(redis_server) as proxy:
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            assert await ask(stream, b"PING") == b"+PONG\r\n"
            proxy.blackhole()
            assert proxy.cut_all() == 1
            assert await ask(stream, b"PING") == b""
        proxy.heal()
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            assert await ask(stream, b"PING") == b"+PONG\r\n"


async def test_refused_connects_fail_at_once_and_open_ones_go_on(redis_server: RedisServer) -> None:
    """While refusing, nobody listens on the port; afterwards the same port listens again."""
    async with proxied(redis_server) as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        assert await ask(stream, b"PING") == b"+PONG\r\n"
        proxy.refuse()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", proxy.port)
        assert await ask(stream, b"PING") == b"+PONG\r\n"
        proxy.accept()
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as other:
            assert await ask(other, b"PING") == b"+PONG\r\n"


async def test_a_black_hole_delivers_late_after_healing(redis_server: RedisServer) -> None:
    """Nothing passes and nothing closes while half-open; what was on its way arrives after healing."""
    async with proxied(redis_server) as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        assert await ask(stream, b"PING") == b"+PONG\r\n"
        proxy.blackhole(requests=False)
        assert await silent(stream, b"INCR n")
        proxy.heal()
        assert await stream.receive_some() == b":1\r\n"
        proxy.blackhole()
        assert await silent(stream, b"INCR n")
        proxy.heal()
        assert await stream.receive_some() == b":2\r\n"


async def test_delay_slows_every_chunk(redis_server: RedisServer) -> None:
    """With a delay a round trip takes at least twice as long as it says."""
    async with proxied(redis_server) as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        proxy.delay_s = 0.05
        begun_s = trio.current_time()
        assert await ask(stream, b"PING") == b"+PONG\r\n"
        assert trio.current_time() - begun_s >= 0.1


async def test_the_proxy_reaches_a_unix_socket_and_survives_its_absence(tmp_path: Path) -> None:
    """The target may be a unix socket; while the server is down, a connection just ends."""
    with RedisServer(tmp_path, unix=True) as server, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            proxy: TcpProxy = await nursery.start(serve_tcp_proxy, str(server.socket_path))
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
                assert await ask(stream, b"PING") == b"+PONG\r\n"
            server.stop()
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
                assert await ask(stream, b"PING") == b""
            nursery.cancel_scope.cancel()
