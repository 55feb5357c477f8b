"""The parts of the load tester that can be looked at alone: dialect, connection, measures, figures, plots."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

import pytest

from server.commands.loadtest import plots
from server.commands.loadtest.figures import Earlier, Figures, percentile
from server.commands.loadtest.generator import Generator
from server.commands.loadtest.measures import Gauge
from server.commands.loadtest.messages import Batch, Counts, Order, Part, Plan
from server.commands.loadtest.options import source_addresses
from server.commands.loadtest.targets import Answer, LongPollServer, Reason
from server.errors import LoadTestError

POLL = b'"poll":{"reason":"%b","changed":true,"waitedMs":12,"next":"%b","retryAfterMs":%d}}'


def body(version: int, reason: bytes = b"change", following: bytes = b"again", retry: int = 0) -> bytes:
    data = b'{"data":{"taskId":"t","version":%d,"message":"\\"version\\":99,\\"reason\\":\\"drain\\""},' % version
    return data + POLL % (reason, following, retry)


def whole(content: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%bcontent-LENGTH: %d\r\n\r\n%b" % (status, headers, len(content), content)


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (body(7), Answer(7, Reason.CHANGE, b"7")),
        (body(7, b"timeout"), Answer(7, Reason.TIMEOUT, b"7")),
        (body(7, b"degraded", retry=3500), Answer(7, Reason.DEGRADED, b"7", 3.5)),
        (body(8, b"change", b"stop"), Answer(8, Reason.CHANGE, b"8", 0.0, final=True)),
        (body(8, b"novel"), Answer(8, Reason.UNKNOWN, b"8")),
    ],
)
def test_a_reply_is_read_without_being_misled_by_texts_in_it(content: bytes, answer: Answer) -> None:
    reply = whole(content)
    target = LongPollServer("127.0.0.1", 1, wait_seconds=30)
    assert target.read(reply, reply.index(b"\r\n\r\n") + 4) == answer


def test_a_page_names_itself_and_a_plain_poller_names_no_version() -> None:
    page = LongPollServer("127.0.0.1", 80, wait_seconds=30, as_pages=True)
    before, behind = page.request("t", "lp_s", 4)
    assert before + page.cursor(3) == b"GET /api/generate/status?taskId=t&wait=30&c=page4&version=3"
    assert behind == b" HTTP/1.1\r\nHost: 127.0.0.1:80\r\nAuthorization: Bearer lp_s\r\n\r\n"
    plain = LongPollServer("127.0.0.1", 80, wait_seconds=30, holds=False)
    assert plain.request("t", "lp_s", 4)[0] + plain.cursor(3) == b"GET /api/generate/status?taskId=t&wait=0"


# One client against a server that says what the test wants ------------------------------------------------------------


class Scripted:
    """A generator with one client, and the other end of its connection in the test's hand."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(10)
        port = self._listening.getsockname()[1]
        self._link, theirs = Pipe()
        plan = Plan(LongPollServer("127.0.0.1", port, wait_seconds=30), [Part(0, "t", 1, "lp_s", None)])
        self._thread = Thread(target=Generator(plan, theirs).run)
        self._thread.start()
        self.counts = Counts(0, 0, 0, 0, 0, 0)

    def order(self, order: Order, value: object = None) -> None:
        self._link.send((order, value))

    def accept(self) -> socket.socket:
        accepted, _ = self._listening.accept()
        accepted.settimeout(10)
        return accepted

    def harvest(self) -> Batch:
        self.order(Order.COLLECT)
        while not isinstance(message := self._link.recv(), Batch):
            self.counts = message
        return message

    def until(self, **wanted: int) -> Counts:
        end = time.monotonic() + 10
        while any(getattr(self.counts, name) != value for name, value in wanted.items()):
            assert self._link.poll(max(end - time.monotonic(), 0)), (self.counts, wanted)
            message = self._link.recv()
            assert isinstance(message, Counts)
            self.counts = message
        return self.counts

    def close(self) -> None:
        self._link.close()
        self._thread.join(10)
        self._listening.close()
        assert not self._thread.is_alive()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.close()


def request(opened: socket.socket) -> bytes:
    said = b""
    while not said.endswith(b"\r\n\r\n"):
        said += opened.recv(4096)
    return said.partition(b"\r\n")[0]


def test_a_reply_in_pieces_is_one_reply_and_its_last_byte_counts(scripted: Scripted) -> None:
    scripted.order(Order.OPEN, 100.0)
    with scripted.accept() as opened:
        assert b"version=1 " in request(opened)
        scripted.until(waiting=1)
        reply = whole(body(2))
        for piece in (reply[:9], reply[9:60], reply[60:-1]):
            opened.sendall(piece)
            assert scripted.harvest().pending
        before = time.monotonic()
        opened.sendall(reply[-1:])
        scripted.until(waiting=0, idle=1)
        (record,) = scripted.harvest().replies()
    assert (record.asked, record.version, record.reason) == (1, 2, Reason.CHANGE)
    assert record.sent < before <= record.arrived


def test_who_goes_on_asks_again_with_what_was_seen_and_who_pauses_does_not(scripted: Scripted) -> None:
    scripted.order(Order.GO_ON)
    scripted.order(Order.OPEN, 100.0)
    with scripted.accept() as opened:
        request(opened)
        opened.sendall(whole(body(5)))
        assert b"version=5 " in request(opened)
        scripted.order(Order.PAUSE)
        scripted.harvest()
        opened.sendall(whole(body(6)))
        scripted.until(waiting=0, idle=1)
        scripted.order(Order.ASK)
        assert b"version=6 " in request(opened)


def test_an_ended_task_is_not_asked_for_again(scripted: Scripted) -> None:
    scripted.order(Order.GO_ON)
    scripted.order(Order.OPEN, 100.0)
    with scripted.accept() as opened:
        request(opened)
        opened.sendall(whole(body(5, following=b"stop")))
        assert scripted.until(waiting=0, final=1).idle == 0


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (b"", "closed"),
        (whole(b"{}", b"503 Service Unavailable"), "HTTP 503"),
        (whole(b"{}"), "unreadable reply"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "unreadable reply"),
    ],
)
def test_a_failure_is_counted_by_its_name_and_tried_again(scripted: Scripted, reply: bytes, failure: str) -> None:
    scripted.order(Order.OPEN, 100.0)
    with scripted.accept() as opened:
        request(opened)
        if reply:
            opened.sendall(reply)
        else:
            opened.shutdown(socket.SHUT_WR)
        scripted.until(failures=1)
    with scripted.accept() as opened:
        assert b"version=1 " in request(opened)
        assert scripted.harvest().failures == {failure: 1}


def test_a_connection_that_was_closed_while_idle_is_no_failure(scripted: Scripted) -> None:
    scripted.order(Order.OPEN, 100.0)
    with scripted.accept() as opened:
        request(opened)
        opened.sendall(whole(body(2), headers=b"Connection: close\r\n"))
        scripted.until(idle=1)
    scripted.order(Order.ASK)
    with scripted.accept() as opened:
        request(opened)
        opened.sendall(whole(body(3)))
        scripted.until(idle=1, replies=2)
    scripted.order(Order.ASK)
    with scripted.accept() as opened:
        request(opened)
        assert scripted.harvest().failures == {}


# Measures -----------------------------------------------------------------------------------------------------------


def test_memory_and_cpu_of_another_process_are_read() -> None:
    work = "import sys, time; time.process_time(); kept = b'x' * 30_000_000\nwhile time.process_time() < 0.3: pass\n"
    say = "print(time.process_time(), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", work + say], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        spent = float(process.stdout.readline())
        gauge = Gauge([process.pid])
        assert gauge.cpu_seconds() == pytest.approx(spent, abs=0.05)
        assert gauge.kilobytes() > 30_000
        assert Gauge([process.pid, os.getpid()]).kilobytes() > gauge.kilobytes()
        process.communicate()
    with pytest.raises(LoadTestError, match="can't be read"):
        gauge.kilobytes()


def test_fifty_thousand_clients_come_from_several_addresses() -> None:
    addresses = source_addresses("127.0.0.1", 50_000)
    assert len(addresses) == 50_000
    assert set(addresses) == {f"127.0.0.{number}" for number in range(1, 6)}
    assert set(source_addresses("192.0.2.1", 10)) == {None}


# Figures ------------------------------------------------------------------------------------------------------------


def figures(**values: float) -> Figures:
    return Figures("http://x", "one", {"clients": 2, "held": 2, "lost": 0, "errors": 0, **values})


@pytest.mark.parametrize("name", ["lost", "errors", "without_reason", "repaired"])
def test_a_run_passes_only_if_nothing_was_lost(name: str) -> None:
    assert figures().passed
    assert not figures(**{name: 1}).passed
    assert not figures(held=1).passed


def test_percentiles_are_values_that_occurred() -> None:
    assert [percentile([5, 1, 4, 2, 3], share) for share in (0, 50, 90, 100)] == [1, 3, 5, 5]


def test_figures_come_back_from_their_file(tmp_path: Path) -> None:
    figures(wake_p50_ms=4.0).write(tmp_path / "a.json")
    earlier = Earlier.read(tmp_path / "a.json")
    assert earlier.ratio("wake_p50_ms", 2.0) == 0.5
    assert earlier.ratio("lost", 1) is None
    assert earlier.ratio("unheard_of", 1) is None


def test_every_value_is_in_a_bucket() -> None:
    values = [-0.5, 0.001, 0.01, 0.5, 9.99, 10.0, 10_000]
    found = plots.buckets(values)
    assert sum(bucket.size for bucket in found) == len(values)
    assert all(low.high == pytest.approx(high.low) for low, high in itertools.pairwise(found))
    assert plots.buckets([]) == []


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [-0.2, 3.5, 2000.0]])
def test_plots_are_well_formed(values: list[float]) -> None:
    for draw in (plots.histogram, plots.percentiles, plots.bars):
        root = ET.fromstring(draw("a < b & c", values, "ms"))  # noqa: S314 - ours
        assert root.tag.endswith("svg")
        assert root.attrib["aria-label"] == "a < b & c"
