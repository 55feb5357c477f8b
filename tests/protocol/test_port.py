"""The port when it closes: whoever has connected is answered, and nobody who stays silent holds the process up."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from server.commands.certificate import write_certificate
from server.config import Config, ServerSettings
from server.errors import ConfigurationError
from server.protocol.port import PATIENCE_SECONDS, Port
from server.protocol.syn_filter import hear_no_syn
from tests.support.facts import Stopwatch

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class House:
    """An application behind a port."""

    def __init__(self, runner: web.AppRunner, port: Port, number: int) -> None:
        self._runner = runner
        self._port = port
        self.number = number
        self.closed, self.took = False, 0.0

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.number

    async def close(self) -> float:
        """Close as a process does that stops; returns how long the port took, without what the machine stood still."""
        self.closed, began = True, time.monotonic()
        async with Stopwatch() as closing:
            await self._port.close()
        self.took = time.monotonic() - began
        await self._runner.cleanup()
        return closing.seconds


@contextlib.asynccontextmanager
async def open_house(
    settings: ServerSettings, tls: ssl.SSLContext | None = None, *, says: str = "welcome"
) -> AsyncIterator[House]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=says)

    app = web.Application()
    app.router.add_get("/", answer)
    port, runner = Port(app, settings, tls), web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    assert runner.server is not None
    house = House(runner, port, await port.open(runner.server))
    try:
        yield house
    finally:
        if not house.closed:
            await house.close()


@pytest.fixture
def settings() -> ServerSettings:
    return Config().replace(server={"port": 0}).server


@pytest.fixture
async def house(settings: ServerSettings) -> AsyncIterator[House]:
    async with open_house(settings) as opened:
        yield opened


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> float:
    """So much patience that nobody uses it up, on whatever machine; returns how much that is."""
    seconds = 10.0
    monkeypatch.setattr("server.protocol.port.PATIENCE_SECONDS", seconds)
    return seconds


async def read_status(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.readline()


@pytest.mark.usefixtures("patient")
async def test_those_who_still_stand_in_the_kernels_queue_are_answered(house: House) -> None:
    """They are connected, for all they know; the loop has had no turn to accept them."""
    waiting = [socket.create_connection(house.address) for _ in range(300)]
    for client in waiting:
        client.sendall(REQUEST)
    await house.close()
    for client in waiting:
        with client:
            client.settimeout(10)
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(house.address)


@pytest.mark.usefixtures("patient")
async def test_those_whom_the_loop_accepts_in_that_very_turn_are_answered(house: House) -> None:
    with socket.create_connection(house.address) as client:
        client.sendall(REQUEST)
        loop: Any = asyncio.get_running_loop()
        assert house._port._listening is not None
        key = loop._selector.get_key(house._port._listening.sockets[0].fileno())
        accept, _ = key.data
        accept._run()  # as the loop does when the socket is readable
        await house.close()
        client.settimeout(10)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_who_has_just_connected_may_still_ask(patient: float, house: House) -> None:
    reader, writer = await asyncio.open_connection(*house.address)
    closing = asyncio.create_task(house.close())
    await asyncio.sleep(PATIENCE_SECONDS / 4)  # a slow client
    writer.write(REQUEST)
    assert await read_status(reader) == b"HTTP/1.1 200 OK\r\n"
    assert await closing < patient / 2
    writer.close()


async def test_who_has_been_silent_or_was_answered_is_not_waited_for(house: House) -> None:
    (_, silent), (reader, answered) = [await asyncio.open_connection(*house.address) for _ in range(2)]
    answered.write(REQUEST)
    await read_status(reader)
    await asyncio.sleep(PATIENCE_SECONDS * 1.1)  # what is tested is that this is long enough
    assert await house.close() < PATIENCE_SECONDS / 2
    silent.close()
    answered.close()


async def test_who_connects_and_says_nothing_is_waited_for_no_longer_than_that(house: House) -> None:
    _, writer = await asyncio.open_connection(*house.address)
    assert await house.close() < 2 * PATIENCE_SECONDS
    assert house.took > PATIENCE_SECONDS / 2
    writer.close()


async def test_nobody_is_remembered_for_longer_than_that(house: House) -> None:
    writers = [(await asyncio.open_connection(*house.address))[1] for _ in range(20)]
    assert len(house._port._arrived) == 20
    for writer in writers:
        writer.close()
    async with asyncio.timeout(10):
        while house._port._arrived or house._port._timer:
            await asyncio.sleep(0.01)


@pytest.fixture
async def tls_house(settings: ServerSettings, tmp_path: Path) -> AsyncIterator[tuple[House, ssl.SSLContext]]:
    certificate, key = write_certificate(tmp_path / "tls", ["localhost", "127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with open_house(settings, context) as opened:
        yield opened, ssl.create_default_context(cafile=certificate)


async def ask_over_tls(client: socket.socket, trust: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(sock=client, ssl=trust, server_hostname="127.0.0.1")
    writer.write(REQUEST)
    status = await read_status(reader)
    writer.close()
    return status


@pytest.mark.parametrize("accepted", [False, True], ids=["in the kernel's queue", "accepted"])
@pytest.mark.usefixtures("patient")
async def test_a_tls_handshake_that_has_not_begun_may_still_be_made(
    tls_house: tuple[House, ssl.SSLContext], *, accepted: bool
) -> None:
    house, trust = tls_house
    client = socket.create_connection(house.address)
    client.setblocking(False)
    if accepted:
        async with asyncio.timeout(10):
            while not house._port._arrived:
                await asyncio.sleep(0.01)
    closing = asyncio.create_task(house.close())
    await asyncio.sleep(0.05)  # the handshake begins when the port is closed
    assert await ask_over_tls(client, trust) == b"HTTP/1.1 200 OK\r\n"
    await closing


async def test_a_tls_handshake_that_never_comes_holds_nothing_up(tls_house: tuple[House, ssl.SSLContext]) -> None:
    """The loop's own patience with one is 60 s."""
    house, _ = tls_house
    with socket.create_connection(house.address):
        assert await house.close() < 2 * PATIENCE_SECONDS


async def test_an_address_that_cannot_be_used_is_named(house: House, settings: ServerSettings) -> None:
    taken = Config().replace(server={"port": house.number}).server
    with pytest.raises(ConfigurationError, match=rf"can't listen on 127\.0\.0\.1:{house.number}: "):
        async with open_house(taken):
            pass


async def test_every_address_is_listened_on_by_the_one_that_means_any(settings: ServerSettings) -> None:
    for host in ("::", "0:0:0:0:0:0:0:0"):
        async with open_house(dataclasses.replace(settings, host=host)) as house:
            for address in ("127.0.0.1", "::1"):
                reader, writer = await asyncio.open_connection(address, house.number)
                writer.write(REQUEST)
                assert await read_status(reader) == b"HTTP/1.1 200 OK\r\n"
                writer.close()


async def test_processes_share_every_address(settings: ServerSettings) -> None:
    shared = dataclasses.replace(settings, host="::", reuse_port=True)
    async with open_house(shared) as one, open_house(dataclasses.replace(shared, port=one.number)) as other:
        assert one.number == other.number


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """One whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="lp", dir="/tmp") as folder:
        yield Path(folder)


async def ask_at(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(REQUEST)
    status = await read_status(reader)
    writer.close()
    return status


async def test_a_unix_socket_is_listened_on_and_removed(settings: ServerSettings, short_folder: Path) -> None:
    path = short_folder / "socket"
    async with open_house(dataclasses.replace(settings, unix_socket=str(path))) as house:
        assert house.number == 0
        assert path.stat().st_mode & 0o777 == 0o666
        assert await ask_at(path) == b"HTTP/1.1 200 OK\r\n"
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        for client in waiting:
            client.connect(str(path))
            client.sendall(REQUEST)
        await house.close()
        for client in waiting:
            with client:
                client.settimeout(10)
                assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    assert not path.exists()


async def test_what_a_dead_process_has_left_gives_way(settings: ServerSettings, short_folder: Path) -> None:
    path = short_folder / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with open_house(dataclasses.replace(settings, unix_socket=str(path))):
        assert await ask_at(path) == b"HTTP/1.1 200 OK\r\n"


async def test_a_living_process_and_a_file_do_not_give_way(settings: ServerSettings, short_folder: Path) -> None:
    path = short_folder / "socket"
    ours = dataclasses.replace(settings, unix_socket=str(path))
    async with open_house(ours):
        with pytest.raises(ConfigurationError, match=f"can't listen on {path}: another process listens there"):
            async with open_house(ours):
                pass
        assert await ask_at(path) == b"HTTP/1.1 200 OK\r\n"
    path.write_text("somebody's own")
    with pytest.raises(ConfigurationError, match="in use"):
        async with open_house(ours):
            pass
    assert path.read_text() == "somebody's own"
    for other in (short_folder / "nowhere" / "socket", short_folder / ("x" * 200)):
        with pytest.raises(ConfigurationError, match="can't listen on"):
            async with open_house(dataclasses.replace(settings, unix_socket=str(other))):
                pass


async def test_a_file_that_is_another_processs_by_now_is_left(settings: ServerSettings, short_folder: Path) -> None:
    path = short_folder / "socket"
    async with open_house(dataclasses.replace(settings, unix_socket=str(path))):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.is_socket()


def can_filter() -> bool:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return hear_no_syn(probe)


@pytest.mark.skipif(not can_filter(), reason="only Linux can filter SYNs, and here and there only for root")
async def test_a_process_that_leaves_a_shared_port_takes_nobody_new_and_fails_nobody() -> None:
    """While it waits for handshakes that have begun, clients find the other process, which here starts later."""
    shared = Config().replace(server={"port": 0, "reuse_port": True}).server
    async with open_house(shared, says="the old one") as old:
        known, writer = await asyncio.open_connection(*old.address)
        closing = asyncio.create_task(old.close())
        await asyncio.sleep(0)
        coming = [asyncio.create_task(asyncio.open_connection(*old.address)) for _ in range(20)]
        writer.write(REQUEST)
        assert (await known.read()).endswith(b"the old one")
        async with open_house(dataclasses.replace(shared, port=old.number), says="the new one"):
            for each in coming:
                reader, newcomer = await each
                newcomer.write(REQUEST.replace(b"Host", b"Connection: close\r\nHost"))
                assert (await reader.read()).endswith(b"the new one")
                newcomer.close()
            await closing
        writer.close()
