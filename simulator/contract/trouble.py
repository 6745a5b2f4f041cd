"""Cases about a service or a connection that misbehaves: nothing hangs, nothing is done twice, nothing is made up."""

from __future__ import annotations

from gateway.errors import FaultClass
from gateway.retry import ACTIONS, Action
from simulator.contract.bench import Attempt, Bench, marked
from simulator.contract.case import case

#: Faults after which the queue gives the job another try.
AGAIN = tuple(kind for kind, action in ACTIONS.items() if action in {Action.RETRY, Action.RELEASE})
BROKEN = (
    FaultClass.NETWORK,
    FaultClass.TIMEOUT,
    FaultClass.PROTOCOL,
    FaultClass.SERVICE_ERROR,
    FaultClass.UNAVAILABLE,
)


def settled_or_again(bench: Bench, attempt: Attempt, mark: str) -> None:
    """What every trouble with a connection may end in, by what the connector declares.

    Where the service can be asked about a job, the job's own result. Elsewhere a fault that the queue tries again,
    and that says whether the work may be going on.
    """
    if bench.capabilities.query:
        assert marked(attempt.value(), mark), f"not the job's own result: {attempt.described()}"
        assert bench.executions == 1, f"the work was done {bench.executions} times"
    elif attempt.fault is not None:
        attempt.failed(*BROKEN)
        assert attempt.fault.outcome_unknown or not bench.executions, "the fault denies that work was begun"
    else:
        assert marked(attempt.value(), mark), f"not the job's own result: {attempt.described()}"


async def _under(bench: Bench, **knobs: float) -> Attempt:
    bench.faults(**knobs)
    attempt = await bench.run(bench.connector(), bench.job(units=2, chunks=3, steps=8, result="mark-1"))
    settled_or_again(bench, attempt, "mark-1")
    return attempt


@case("submit_reply_lost_rate")
async def lost_submit_reply(bench: Bench) -> None:
    """A job whose acceptance got lost is found by asking, not run twice; or it is reported as possibly running."""
    await _under(bench, submit_reply_lost_rate=1.0)


@case("submit_500_after_accept_rate")
async def error_after_accepting(bench: Bench) -> None:
    """An error that answers an accepted submission does not make the work be done twice."""
    await _under(bench, submit_500_after_accept_rate=1.0)


@case("lost_completion_rate")
async def lost_completion(bench: Bench) -> None:
    """A completion that is never announced is found by the second witness, long before the job's own time-out."""
    await _under(bench, lost_completion_rate=1.0)


@case("finished_before_listening_rate")
async def finished_before_listening(bench: Bench) -> None:
    """A job that ended before anybody listened brings its result."""
    bench.faults(finished_before_listening_rate=1.0)
    attempt = await bench.run(bench.connector(), bench.job(units=2, result="mark-1"))
    assert marked(attempt.value(), "mark-1")
    assert bench.executions == 1


@case("disconnect_rate")
async def disconnect(bench: Bench) -> None:
    """A connection that breaks in the middle of a job costs no second execution."""
    await _under(bench, disconnect_rate=1.0)


@case("half_open_rate")
async def half_open(bench: Bench) -> None:
    """A connection that goes silent and stays open is noticed, long before the job's own time-out."""
    await _under(bench, half_open_rate=1.0)


@case("disconnect_rate", "half_open_rate", "lost_completion_rate", "query")
async def every_trouble_of_a_stream(bench: Bench) -> None:
    """Streams that break, fall silent and tell lies half of the time do not change what is recorded."""
    bench.faults(
        disconnect_rate=0.5,
        half_open_rate=0.3,
        lost_completion_rate=0.5,
        duplicate_event_rate=0.5,
        out_of_order_rate=0.5,
        event_after_terminal_rate=0.5,
    )
    connector = bench.connector()
    for number in range(6):
        attempt = await bench.run(connector, bench.job(units=1, chunks=3, result=f"mark-{number}"))
        assert marked(attempt.value(), f"mark-{number}"), attempt.described()
    assert bench.executions == 6


@case("duplicate_event_rate")
async def duplicate_events(bench: Bench) -> None:
    """Events that come twice change nothing: one result, every chunk once."""
    attempt = await _under(bench, duplicate_event_rate=1.0)
    chunks = [str(chunk) for chunk in attempt.job.chunks]
    assert len(set(chunks)) == len(chunks), f"a chunk was delivered twice: {chunks}"


@case("out_of_order_rate")
async def late_events(bench: Bench) -> None:
    """Events that overtake each other never bring progress or a chunk twice, nor a wrong end."""
    attempt = await _under(bench, out_of_order_rate=1.0)
    chunks = [str(chunk) for chunk in attempt.job.chunks]
    assert len(set(chunks)) == len(chunks), f"a chunk was delivered twice: {chunks}"


@case("event_after_terminal_rate")
async def event_after_the_end(bench: Bench) -> None:
    """What is said after the end is not heard, and does not disturb the connector's next job."""
    await _under(bench, event_after_terminal_rate=1.0)
    attempt = await bench.run(bench.connector(), bench.job(result="mark-2"))
    assert marked(attempt.value(), "mark-2")


@case("garbage_rate")
async def garbage(bench: Bench) -> None:
    """A service that speaks nothing but garbage is a protocol fault, noticed soon."""
    bench.faults(garbage_rate=1.0)
    attempt = await bench.run(bench.connector(), bench.job(units=2))
    attempt.failed(FaultClass.PROTOCOL)


@case("garbage_rate", "query")
async def garbage_at_times(bench: Bench) -> None:
    """Garbage between good answers is stepped over: the job ends with its own result, done once."""
    bench.faults(garbage_rate=0.3)
    attempt = await bench.run(bench.connector(), bench.job(units=2, chunks=3, result="mark-1"))
    assert marked(attempt.value(), "mark-1"), attempt.described()
    assert bench.executions == 1


@case("error_5xx_rate")
async def internal_errors(bench: Bench) -> None:
    """A service that answers every request with an internal error is a fault that is tried again elsewhere."""
    bench.faults(error_5xx_rate=1.0)
    (await bench.run(bench.connector(), bench.job())).failed(FaultClass.SERVICE_ERROR)
    assert bench.executions == 0


@case("unavailable_rate")
async def unavailable(bench: Bench) -> None:
    """A service that says it cannot serve now gives the job back, uncharged."""
    bench.faults(unavailable_rate=1.0)
    (await bench.run(bench.connector(), bench.job())).failed(FaultClass.UNAVAILABLE)
    assert bench.executions == 0


@case("hang_rate")
async def hang(bench: Bench) -> None:
    """A service that never answers is given up, long before the job's own time-out."""
    bench.faults(hang_rate=1.0)
    attempt = await bench.run(bench.connector(), bench.job())
    attempt.failed(FaultClass.TIMEOUT, FaultClass.UNAVAILABLE, FaultClass.NETWORK)
    assert bench.executions == 0


@case()
async def nobody_listens(bench: Bench) -> None:
    """A port where nobody listens gives the job back, uncharged, and nothing was begun."""
    attempt = await bench.run(bench.stray_connector(), bench.job())
    fault = attempt.failed(FaultClass.UNAVAILABLE)
    assert not fault.outcome_unknown, "nothing was sent, so nothing can be unknown"


@case()
async def restart_that_forgets(bench: Bench) -> None:
    """A service that forgets a running job makes the attempt fail soon; it neither hangs nor makes up a result."""
    attempt = bench.start(bench.connector(), bench.job(units=20, result="mark-1"))
    await bench.begun()
    await bench.units(1)
    bench.twin.shell.restart()
    await bench.end_of(attempt)
    if attempt.fault is not None:
        attempt.failed(*AGAIN)
    else:
        assert marked(attempt.value(), "mark-1")
        assert bench.executions == 2, "there is a result although nothing was done again"


@case()
async def after_the_trouble(bench: Bench) -> None:
    """When the trouble is over, the same connector works again."""
    connector = bench.connector()
    for knobs in ({"unavailable_rate": 1.0}, {"error_5xx_rate": 1.0}, {"disconnect_rate": 1.0}):
        bench.faults(**knobs)
        attempt = bench.start(connector, bench.job())
        await bench.units(1)
        bench.heal()
        await bench.stop(attempt)
    attempt = await bench.run(connector, bench.job(result="mark-1"))
    assert marked(attempt.value(), "mark-1"), attempt.described()


@case("credentials")
async def no_secret_in_errors(bench: Bench) -> None:
    """Whatever goes wrong, no error, no text of an error's cause and no repr shows a credential."""
    connector = bench.connector(**bench.dialect.secrets)
    texts = [repr(connector)]
    for knobs in (
        {"error_4xx_rate": 1.0},
        {"error_5xx_rate": 1.0},
        {"unavailable_rate": 1.0},
        {"garbage_rate": 1.0},
    ):
        bench.heal()
        bench.faults(**knobs)
        error: BaseException | None = (await bench.run(connector, bench.job())).failed()
        while error is not None:
            texts += [str(error), repr(error)]
            error = error.__cause__ or error.__context__
    assert bench.dialect.secrets, "the dialect names no credential to try"
    for secret in bench.dialect.secrets.values():
        shown = [text for text in texts if secret in text]
        assert not shown, f"a credential is shown: {shown[0][:200]!r}"
