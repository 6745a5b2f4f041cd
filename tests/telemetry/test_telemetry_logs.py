"""Log lines: the job they are about, valid JSON, no secrets, no floods."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest
import trio
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.config import TelemetryConfig
from gateway.telemetry import Telemetry, build_telemetry, configure_logging
from gateway.telemetry.logs import REMEMBERED_MAX, REPEATS_MAX, WINDOW_S, RepeatFilter, redact
from tests.telemetry.facts import TRACE_ID, TRACEPARENT, make_grant

log = logging.getLogger("gateway.somewhere")
Start = Callable[..., io.StringIO]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def start() -> Iterator[Start]:
    setups = []

    def begin(*, log_json: bool = False, level: str = "info", out: io.StringIO | None = None) -> io.StringIO:
        stream = io.StringIO() if out is None else out
        setups.append(configure_logging(TelemetryConfig(log_json=log_json, log_level=level), stream=stream))
        return stream

    yield begin
    for setup in reversed(setups):
        setup.remove()


def records(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.fixture(params=[True, False], ids=["traced", "silent"])
def telemetry(request: pytest.FixtureRequest) -> Telemetry:
    return build_telemetry(TelemetryConfig(), span_exporter=InMemorySpanExporter() if request.param else None)


async def test_each_line_of_an_attempt_names_it(start: Start, telemetry: Telemetry) -> None:
    """Lines of an attempt's task, and of tasks it starts, carry its ids; a neighbour's lines carry its own."""
    out = start(log_json=True)

    async def job(number: int) -> None:
        grant = make_grant(job_id=f"job-{number}", epoch=number, traceparent=TRACEPARENT)
        with telemetry.attempt(grant, worker_id=f"w{number}", connector_key="c", endpoint="e"):
            await trio.lowlevel.checkpoint()
            log.info("working")
            async with trio.open_nursery() as children:  # noqa: ASYNC112 - a task of its own is the point
                children.start_soon(child)

    async def child() -> None:
        log.info("child")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for number in (1, 2, 3):
                nursery.start_soon(job, number)
        log.info("outside")
    lines = records(out)
    for message in ("working", "child"):
        found = sorted(
            (line["job_id"], line["epoch"], line["worker_id"]) for line in lines if line["message"] == message
        )
        assert found == [("job-1", 1, "w1"), ("job-2", 2, "w2"), ("job-3", 3, "w3")]
    assert {line["trace_id"] for line in lines if "job_id" in line} == {TRACE_ID}
    spans = {line["span_id"] for line in lines if "job_id" in line}
    assert len(spans) == (3 if telemetry.tracing else 1)
    assert set(lines[-1]) == {"time", "level", "logger", "message"}


def test_lines_within_a_call_name_its_span(start: Start) -> None:
    """With spans, a line within a service call carries that call's span id."""
    out = start(log_json=True)
    telemetry = build_telemetry(TelemetryConfig(), span_exporter=InMemorySpanExporter())
    with telemetry.attempt(make_grant(), worker_id="w", connector_key="c", endpoint="e") as attempt:
        with attempt.service_call("run"):
            log.info("inside")
            seen = attempt.headers["traceparent"].split("-")
        log.info("after")
    inside, after = records(out)
    assert [inside["trace_id"], inside["span_id"]] == seen[1:3]
    assert after["trace_id"] == seen[1]
    assert after["span_id"] != seen[2]


def test_json_lines_stay_valid(start: Start) -> None:
    """Whatever a line holds, it stays one line of valid JSON, with the traceback in a field of its own."""
    out = start(log_json=True)
    log.warning("odd: %s", '"\n\x00é€')
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed")
    odd, failed = records(out)
    assert odd["message"] == 'odd: "\n\x00é€'
    assert failed["level"] == "error"
    assert "ValueError: broken" in str(failed["exception"])


def test_plain_lines_name_the_attempt_and_cannot_be_forged(start: Start) -> None:
    """A plain line ends with its job; a line end in a message does not begin a new line."""
    out = start()
    telemetry = build_telemetry(TelemetryConfig())
    grant = make_grant(traceparent=TRACEPARENT)
    with telemetry.attempt(grant, worker_id="w1", connector_key="c", endpoint="e"):
        log.info("service said %s", "ok\n2030-01-01 ERROR forged")
    (line,) = out.getvalue().splitlines()
    assert "INFO    gateway.somewhere service said ok\\n2030-01-01 ERROR forged [job=job-1 epoch=7" in line
    assert line.endswith(f"worker=w1] [trace={TRACE_ID} span=b7ad6b7169203331]")


def test_a_terminal_gets_the_same_facts(start: Start) -> None:
    """On a terminal, brackets in a message are text, not markup."""
    out = start(out=Terminal())
    log.info("took [bold]one[/bold] job")
    assert "[bold]one[/bold]" in out.getvalue()


def test_levels_apply_to_our_packages_and_libraries_stay_quiet(start: Start) -> None:
    """The configured level is ours; a library's chatter below warning is never shown, and all is put back."""
    root_level = logging.getLogger().level
    setup = configure_logging(TelemetryConfig(log_level="debug"), stream=(out := io.StringIO()))
    log.debug("ours")
    logging.getLogger("httpx").info("theirs")
    logging.getLogger("httpx").warning("important")
    setup.remove()
    log.error("after")
    text = out.getvalue()
    assert "ours" in text
    assert "important" in text
    assert "theirs" not in text
    assert "after" not in text
    assert logging.getLogger().level == root_level


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://user:hunter22@db:6379/0 is away", "redis://***@db:6379/0 is away"),
        ("redis://:p@ss@db:6379", "redis://***@db:6379"),
        ("Authorization: Bearer abcdef123456", "Authorization: ***"),
        ("sent {'api_key': 'sk-1234567890'}", "sent {'api_key': '***'}"),
        ("password=correcthorse, user=a", "password=***, user=a"),
        ("http://host:80/path of job a@b", "http://host:80/path of job a@b"),
        ("sent a bearer abcdef123456", "sent a bearer ***"),
        ("the token expired; password unknown", "the token expired; password unknown"),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    """Credentials in addresses and values named as secret do not reach the log."""
    assert redact(text) == shown


def test_secrets_in_tracebacks_are_hidden(start: Start) -> None:
    """An exception's own text is cleaned as well."""
    out = start(log_json=True)
    try:
        raise ConnectionError("redis://u:hunter22@db refused")
    except ConnectionError:
        log.exception("lost the store")
    assert "hunter22" not in out.getvalue()
    assert "redis://***@db" in out.getvalue()


def warning(at_s: float, text: str = "job %s waits", level: int = logging.WARNING) -> logging.LogRecord:
    record = logging.LogRecord("gateway.x", level, __file__, 1, text, ("j",), None)
    record.created = at_s
    return record


def test_repeated_warnings_are_thinned_and_counted() -> None:
    """Of one warning a few pass per window; the next window's first says how many did not."""
    thinned = RepeatFilter()
    passed = [thinned.filter(warning(number * 0.01)) for number in range(REPEATS_MAX + 25)]
    assert passed == [True] * REPEATS_MAX + [False] * 25
    assert thinned.filter(warning(1, "another %s"))
    assert all(thinned.filter(warning(1, level=logging.INFO)) for _ in range(100))
    late = warning(WINDOW_S + 1)
    assert thinned.filter(late)
    assert getattr(late, "left_out", None) == 25


def test_the_count_of_left_out_lines_is_written(start: Start) -> None:
    """The line that ends a silence tells its length."""
    out = start(log_json=True)
    logger = logging.getLogger("gateway.x")
    for number in range(REPEATS_MAX + 3):
        logger.handle(warning(number * 0.01))
    logger.handle(warning(WINDOW_S + 1))
    lines = records(out)
    assert len(lines) == REPEATS_MAX + 1
    assert lines[-1]["message"] == "job j waits (3 more like this were left out)"


def test_thinning_remembers_within_bounds() -> None:
    """Ever new warnings do not fill the memory: the oldest kind is forgotten and starts afresh."""
    thinned = RepeatFilter()
    for _ in range(REPEATS_MAX + 1):
        last = thinned.filter(warning(0, "first"))
    assert not last
    for number in range(REMEMBERED_MAX):
        assert thinned.filter(warning(0, f"kind {number}"))
    assert thinned.filter(warning(0, "first"))
