"""Cases about stopping, asking, following and probing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gateway.connector import ServicePhase
from gateway.connectors.simulation.wire import ErrorKind, FailureWish, JournalEvent
from gateway.errors import FaultClass, JobFault
from simulator.contract.bench import Bench, marked
from simulator.contract.case import case

#: Jobs stopped at once: enough to fill every bound of a connector (connections, slots) several times.
CROWD = 40
PROBES = 100


async def _stopped_at_the_peer(bench: Bench) -> None:
    """Nothing is worked on any more, and no job of the twin completed."""
    await bench.idle()
    assert bench.journal(JournalEvent.CANCELLED), "the peer was not told to stop"
    await bench.units(5)
    assert not bench.journal(JournalEvent.FINISHED), "the peer worked on to the end"


@case()
async def timeout_ends_the_work(bench: Bench) -> None:
    """A job that runs out of time is stopped at the service as well."""
    attempt = bench.start(bench.connector(), bench.job(units=100))
    await bench.begun()
    await bench.units(3)
    await bench.stop(attempt)
    await _stopped_at_the_peer(bench)


@case()
async def cancel_ends_the_work(bench: Bench) -> None:
    """A job that is cancelled right after its start is stopped at the service as well."""
    attempt = bench.start(bench.connector(), bench.job(units=100))
    await bench.begun()
    await bench.stop(attempt)
    await _stopped_at_the_peer(bench)


@case()
async def a_crowd_of_cancels(bench: Bench) -> None:
    """Many jobs cancelled at once all end at the service, and the connector still works."""
    connector = bench.connector()
    attempts = [bench.start(connector, bench.job(units=100)) for _ in range(CROWD)]
    await bench.begun()
    await bench.units(1)
    for attempt in attempts:
        attempt.scope.cancel()
    for attempt in attempts:
        await bench.stop(attempt)
    await bench.idle()
    assert not bench.journal(JournalEvent.FINISHED)
    last = await bench.run(connector, bench.job(result="mark-1"))
    assert marked(last.value(), "mark-1"), last.described()


@case("cancel", "parallel")
async def cancel_spares_others(bench: Bench) -> None:
    """Cancelling one job leaves a stranger's job alone."""
    ours, theirs = bench.connector(), bench.connector()
    stranger = bench.start(theirs, bench.job(units=8, result="mark-1"))
    await bench.begun(1)
    attempt = bench.start(ours, bench.job(units=100))
    await bench.begun(2)
    await bench.units(1)
    await bench.stop(attempt)
    await bench.end_of(stranger)
    assert marked(stranger.value(), "mark-1"), stranger.described()


@case("cancel")
async def cancel_of_unknown_work(bench: Bench) -> None:
    """Cancelling what the service does not know is no error, and stops nobody."""
    connector = bench.connector()
    stranger = bench.start(bench.connector(), bench.job(units=4, result="mark-1"))
    await bench.begun()
    await connector.cancel("nobody-knows-this.1")
    await bench.end_of(stranger)
    assert marked(stranger.value(), "mark-1"), stranger.described()


@case("cancel", "query")
async def cancel_after_the_end(bench: Bench) -> None:
    """Cancelling a completed job is no error and does not take its result away."""
    connector, job = bench.connector(), bench.job(result="mark-1")
    (await bench.run(connector, job)).value()
    await connector.cancel(job.reference)
    assert (await connector.query(job.reference)).phase is ServicePhase.COMPLETED


@case("cancel")
async def cancelled_by_somebody_else(bench: Bench) -> None:
    """A job that somebody else stops at the service is a failure, never a success with half an output."""
    attempt = bench.start(bench.connector(), bench.job(units=100, chunks=3))
    await bench.begun()
    await bench.units(2)
    await bench.connector().cancel(attempt.job.reference)
    await bench.end_of(attempt)
    attempt.failed(FaultClass.SERVICE_ERROR, FaultClass.NETWORK, FaultClass.INTERRUPTED)


@case("cancel", "cancel_ignored_rate")
async def cancel_that_is_ignored(bench: Bench) -> None:
    """A service that acknowledges a cancel and works on holds the gateway up for a moment only."""
    bench.faults(cancel_ignored_rate=1.0)
    attempt = bench.start(bench.connector(), bench.job(units=20))
    await bench.begun()
    await bench.stop(attempt)


@case("cancel", "hang_rate")
async def cancel_at_a_silent_service(bench: Bench) -> None:
    """A cancel that is not answered ends with a fault, within the connector's own bound."""
    connector = bench.connector()
    attempt = bench.start(connector, bench.job(units=100))
    await bench.begun()
    await bench.crash(attempt)
    bench.faults(hang_rate=1.0)
    fault = await _fault_of(bench, lambda: connector.cancel(attempt.job.reference))
    assert fault.fault_class in {FaultClass.TIMEOUT, FaultClass.UNAVAILABLE, FaultClass.NETWORK}


@case("query")
async def query_of_unknown_work(bench: Bench) -> None:
    """A job that the service never saw is unknown; that is an answer, no error."""
    assert (await bench.connector().query("nobody-knows-this.1")).phase is ServicePhase.UNKNOWN


@case("query")
async def query_of_running_work(bench: Bench) -> None:
    """A running job is told as running, to another connector as well."""
    attempt = bench.start(bench.connector(), bench.job(units=8, result="mark-1"))
    await bench.begun()
    await bench.units(1)
    assert (await bench.connector().query(attempt.job.reference)).phase is ServicePhase.RUNNING
    await bench.end_of(attempt)
    assert marked(attempt.value(), "mark-1"), attempt.described()


@case("query")
async def query_of_completed_work(bench: Bench) -> None:
    """A completed job is told with the same result that its owner got, to another connector as well."""
    attempt = await bench.run(bench.connector(), bench.job(result="mark-1"))
    status = await bench.connector().query(attempt.job.reference)
    assert status.phase is ServicePhase.COMPLETED
    assert status.result is not None
    assert status.result.value == attempt.value(), "the two witnesses tell different results"


@case("query", "fail:service_error")
async def query_of_failed_work(bench: Bench) -> None:
    """A failed job is told with the same class of fault that its owner got."""
    job = bench.job(fail=FailureWish(kind=ErrorKind.SERVICE_ERROR))
    fault = (await bench.run(bench.connector(), job)).failed()
    status = await bench.connector().query(job.reference)
    assert status.phase is ServicePhase.FAILED
    assert status.fault is not None
    assert status.fault.fault_class is fault.fault_class


@case("query", "cancel")
async def query_of_cancelled_work(bench: Bench) -> None:
    """A cancelled job is told as cancelled or no longer known, never as running or done."""
    attempt = bench.start(bench.connector(), bench.job(units=100))
    await bench.begun()
    await bench.stop(attempt)
    await bench.idle()
    phase = (await bench.connector().query(attempt.job.reference)).phase
    assert phase in {ServicePhase.CANCELLED, ServicePhase.UNKNOWN}, f"told as {phase}"


@case("query", "empty_output_rate")
async def query_of_an_empty_output(bench: Bench) -> None:
    """The second witness does not take an empty output for a success either."""
    bench.faults(empty_output_rate=1.0)
    job = bench.job()
    await bench.run(bench.connector(), job)
    assert (await bench.connector().query(job.reference)).phase is ServicePhase.FAILED


@case("query", "hang_rate")
async def query_of_a_silent_service(bench: Bench) -> None:
    """A service that does not answer a query is a fault within the connector's own bound, never 'unknown'."""
    bench.faults(hang_rate=1.0)
    connector = bench.connector()
    fault = await _fault_of(bench, lambda: connector.query("job-1.1"))
    assert fault.fault_class in {FaultClass.TIMEOUT, FaultClass.UNAVAILABLE, FaultClass.NETWORK}


@case("query", "garbage_rate")
async def query_answered_with_garbage(bench: Bench) -> None:
    """A query that is answered with garbage is a fault, never an answer."""
    connector, job = bench.connector(), bench.job()
    (await bench.run(connector, job)).value()
    bench.faults(garbage_rate=1.0)
    fault = await _fault_of(bench, lambda: connector.query(job.reference))
    assert fault.fault_class is FaultClass.PROTOCOL


@case("reattach")
async def reattach(bench: Bench) -> None:
    """After a crash a fresh connector follows the running job by its reference to the result; it ran once."""
    attempt = bench.start(bench.connector(), bench.job(units=10, chunks=2, result="mark-1"))
    await bench.begun()
    await bench.units(2)
    await bench.crash(attempt)
    heir = bench.job(units=10, result="mark-1", reference=attempt.job.reference)
    followed = await bench.run(bench.connector(), heir, resume=True)
    assert marked(followed.value(), "mark-1"), followed.described()
    assert bench.executions == 1


@case("reattach", "query")
async def reattach_to_completed_work(bench: Bench) -> None:
    """A job that ended between the look and the following is collected all the same."""
    attempt = bench.start(bench.connector(), bench.job(units=2, result="mark-1"))
    await bench.begun()
    await bench.crash(attempt)
    await bench.units(4)
    heir = bench.job(result="mark-1", reference=attempt.job.reference)
    followed = await bench.run(bench.connector(), heir, resume=True)
    assert marked(followed.value(), "mark-1"), followed.described()
    assert bench.executions == 1


@case("reattach")
async def reattach_to_forgotten_work(bench: Bench) -> None:
    """Following a job that the service has forgotten is a fault, soon; nothing is run under the old name."""
    heir = bench.job(reference="nobody-knows-this.1")
    attempt = await bench.run(bench.connector(), heir, resume=True)
    attempt.failed()
    assert bench.executions == 0


@case("dedupe")
async def dedupe(bench: Bench) -> None:
    """The same reference submitted twice, at once and afterwards, runs once and gives the same result."""
    first = bench.start(bench.connector(), bench.job(units=2, result="mark-1", reference="one.1"))
    await bench.begun()
    second = bench.start(bench.connector(), bench.job(units=2, result="mark-1", reference="one.1"))
    await bench.end_of(first)
    await bench.end_of(second)
    third = await bench.run(bench.connector(), bench.job(units=2, result="mark-1", reference="one.1"))
    assert first.value() == second.value() == third.value()
    assert bench.executions == 1


@case()
async def healthy(bench: Bench) -> None:
    """A service that answers as a healthy one does is told as healthy."""
    report = await bench.connector().health()
    assert report.healthy, report.detail
    assert report.fault is None


@case("health_failure_rate")
async def unhealthy(bench: Bench) -> None:
    """A service that says it is not well is told as unhealthy, never by an exception."""
    bench.faults(health_failure_rate=1.0)
    report = await bench.connector().health()
    assert not report.healthy
    assert report.detail, "the report does not say what is wrong"


@case("health_failure_rate")
async def four_percent_unhealthy(bench: Bench) -> None:
    """Probes that fail now and then neither end nor disturb the job that runs meanwhile."""
    bench.faults(health_failure_rate=0.04)
    connector = bench.connector()
    attempt = bench.start(connector, bench.job(units=4, result="mark-1"))
    reports = [await connector.health() for _ in range(PROBES)]
    failed = sum(not report.healthy for report in reports)
    assert 0 < failed < PROBES / 4, f"{failed} of {PROBES} probes failed"
    await bench.end_of(attempt)
    assert marked(attempt.value(), "mark-1"), attempt.described()


@case()
async def health_of_nobody(bench: Bench) -> None:
    """A port where nobody listens is unhealthy, never an exception."""
    assert not (await bench.stray_connector().health()).healthy


@case()
async def health_of_a_silent_service(bench: Bench) -> None:
    """A service that hangs is told as unhealthy within the connector's own bound, and as healthy again later."""
    connector = bench.connector()
    bench.twin.shell.pause()
    assert not (await bench.within_patience(connector.health)).healthy
    bench.twin.shell.resume()
    assert (await bench.within_patience(connector.health)).healthy


async def _fault_of(bench: Bench, call: Callable[[], Awaitable[object]]) -> JobFault:
    """The fault that a call raises, within the bench's patience."""
    try:
        answer = await bench.within_patience(call)
    except JobFault as fault:
        return fault
    raise AssertionError(f"no fault, but {answer!r}")
