"""Cases about how a job ends when the connection holds: results, progress, chunks, and every class of failure."""

from __future__ import annotations

import functools
import itertools

from gateway.connector import JobResult
from gateway.connectors.simulation.wire import ErrorKind, FailureWish, JournalEvent
from gateway.errors import FaultClass
from simulator.contract.bench import TRACEPARENT, WORKER, Bench, marked
from simulator.contract.case import add, case

#: The class that each failure of a service becomes.
CLASS_OF_KIND = {
    ErrorKind.VALIDATION: FaultClass.VALIDATION,
    ErrorKind.REFUSED: FaultClass.REFUSED,
    ErrorKind.AUTH: FaultClass.AUTH,
    ErrorKind.RATE_LIMITED: FaultClass.RATE_LIMITED,
    ErrorKind.UNAVAILABLE: FaultClass.UNAVAILABLE,
    ErrorKind.SERVICE_ERROR: FaultClass.SERVICE_ERROR,
    ErrorKind.OUT_OF_MEMORY: FaultClass.OUT_OF_MEMORY,
}
RETRY_AFTER_S = 7.0
CROWD = 8


@case()
async def success(bench: Bench) -> None:
    """A job runs once and brings back the result of its own work."""
    attempt = await bench.run(bench.connector(), bench.job(result="mark-1"))
    assert marked(attempt.value(), "mark-1"), f"not the job's own result: {attempt.described()}"
    assert bench.executions == 1
    assert len(bench.journal(JournalEvent.FINISHED)) == 1


@case()
async def results_are_json(bench: Bench) -> None:
    """A result is what the queue can store: plain JSON, in a JobResult."""
    import msgspec

    attempt = await bench.run(bench.connector(), bench.job(result={"mark": ["é", 1]}))
    assert isinstance(attempt.result, JobResult)
    assert msgspec.json.decode(msgspec.json.encode(attempt.value())) == attempt.value()


@case()
async def one_after_the_other(bench: Bench) -> None:
    """One connector serves job after job, each with its own result."""
    connector = bench.connector()
    for number in range(4):
        attempt = await bench.run(connector, bench.job(units=0.2, result=f"mark-{number}"))
        assert marked(attempt.value(), f"mark-{number}"), attempt.described()
    assert bench.executions == 4


@case()
async def many_at_once(bench: Bench) -> None:
    """Jobs that share a connector never get each other's results."""
    connector = bench.connector()
    attempts = [
        bench.start(connector, bench.job(units=0.4, result=f"mark-{number}-")) for number in range(CROWD)
    ]
    for number, attempt in enumerate(attempts):
        await bench.end_of(attempt)
        assert marked(attempt.value(), f"mark-{number}-"), attempt.described()
    assert bench.executions == CROWD


@case("progress")
async def progress(bench: Bench) -> None:
    """Progress is told while the job runs, between 0 and 1."""
    attempt = await bench.run(bench.connector(), bench.job(units=8, steps=8))
    attempt.value()
    between = [value for value in attempt.job.values if 0 < value < 1]
    assert between, f"no progress was told: {attempt.job.values}"


@case("stream")
async def stream(bench: Bench) -> None:
    """Partial results arrive while the job runs, each once."""
    attempt = bench.start(bench.connector(), bench.job(units=8, chunks=3, result="mark-1"))
    await bench.until(lambda: bool(attempt.job.chunks), "a chunk arrived")
    assert attempt.end is None, "the first chunk came only with the end"
    await bench.end_of(attempt)
    attempt.value()
    chunks = attempt.job.chunks
    assert len(chunks) >= 3, f"3 chunks were sent, {len(chunks)} arrived"
    assert all(one != other for one, other in itertools.pairwise(chunks)), f"a chunk came twice: {chunks}"


@case("routing")
async def routing(bench: Bench) -> None:
    """Whatever a job sends to a service says who asks, under which lease, in which trace, and whom it means."""
    job = bench.job(units=2, chunks=1)
    (await bench.run(bench.connector(), job)).value()
    for entry in bench.journal(JournalEvent.SUBMITTED, JournalEvent.STARTED):
        told = (entry.worker, entry.epoch, entry.traceparent)
        assert told == (WORKER, str(job.epoch), TRACEPARENT), f"{entry.event} came from {told}"
    assert bench.summary().misrouted == 0


@case("routing")
async def misrouted(bench: Bench) -> None:
    """A call that was meant for another instance is seen as such: the expected endpoint is really sent."""
    job = bench.job()
    job.rename_endpoint("http://127.0.0.1:1")
    await bench.run(bench.connector(), job)
    assert bench.summary().misrouted >= 1


async def _fails(bench: Bench, *, kind: ErrorKind) -> None:
    attempt = await bench.run(bench.connector(), bench.job(fail=FailureWish(kind=kind, message="as asked")))
    fault = attempt.failed(CLASS_OF_KIND[kind])
    assert fault.retry_after_s is None, f"the service named no time, the fault says {fault.retry_after_s:g} s"
    assert str(fault), "the fault says nothing"


for _kind, _class in CLASS_OF_KIND.items():
    add(
        f"fails_{_kind}",
        f"A job that the service fails as {_kind} is a fault of class {_class}, with no wish to wait.",
        (f"fail:{_kind}",),
        functools.partial(_fails, kind=_kind),
    )


@case("fail:rate_limited", "retry_after_s")
async def rate_limited_with_retry_after(bench: Bench) -> None:
    """A rate limit with Retry-After hands the service's own wish on."""
    wish = FailureWish(kind=ErrorKind.RATE_LIMITED, message="slow down", retry_after_s=RETRY_AFTER_S)
    attempt = await bench.run(bench.connector(), bench.job(fail=wish))
    assert attempt.failed(FaultClass.RATE_LIMITED).retry_after_s == RETRY_AFTER_S


@case("rate_limit_rate")
async def submit_rate_limited(bench: Bench) -> None:
    """A submission that is answered with a rate limit was not accepted, and is a rate limit."""
    bench.faults(rate_limit_rate=1.0)
    (await bench.run(bench.connector(), bench.job())).failed(FaultClass.RATE_LIMITED)
    assert bench.executions == 0


@case("error_4xx_rate")
async def submit_refused(bench: Bench) -> None:
    """A submission that the service calls bad is a validation fault: no retry would mend it."""
    bench.faults(error_4xx_rate=1.0)
    (await bench.run(bench.connector(), bench.job())).failed(FaultClass.VALIDATION)
    assert bench.executions == 0


@case("empty_output_rate")
async def empty_output(bench: Bench) -> None:
    """An empty output that is marked as a success is a failure of the service."""
    bench.faults(empty_output_rate=1.0)
    (await bench.run(bench.connector(), bench.job())).failed(FaultClass.SERVICE_ERROR)


@case("out_of_memory_rate")
async def out_of_memory(bench: Bench) -> None:
    """A service that runs out of memory half-way is told apart from other failures."""
    bench.faults(out_of_memory_rate=1.0)
    (await bench.run(bench.connector(), bench.job())).failed(FaultClass.OUT_OF_MEMORY)


@case("oversize_rate", "oversize_bytes")
async def large_output(bench: Bench) -> None:
    """An output of 2 MiB arrives whole, or is refused as too large; it never looks like a broken connection."""
    bench.faults(oversize_rate=1.0, oversize_bytes=2 * 1024 * 1024)
    attempt = await bench.run(bench.connector(), bench.job(result="mark-1"))
    if attempt.fault is not None:
        attempt.failed(FaultClass.VALIDATION)
        return
    assert marked(attempt.value(), "mark-1")


@case("oversize_rate", "oversize_bytes")
async def oversize(bench: Bench) -> None:
    """An output beyond the connector's bound is refused for good, without being held in memory."""
    bench.faults(oversize_rate=1.0, oversize_bytes=bench.dialect.oversize_bytes)
    attempt = await bench.run(bench.connector(), bench.job(result="mark-1"))
    attempt.failed(FaultClass.VALIDATION)
