"""What Redis alone does with the shipped scripts: the same calls, sent by ``redis-benchmark`` instead of a gateway.

``redis-benchmark`` sends one fixed command and puts a fresh random number of twelve digits for every
``__rand_int__`` in it. So each operation is prepared until that is enough to make every call a real one:

* submit: ids made of random numbers;
* claim: request ids made of random numbers, over a queue that holds enough jobs;
* settle: ids made of random numbers below the number of claimed jobs, all of which got the same epoch beforehand.
  Some are drawn twice and answered ``duplicate``; the rate counts what was accepted.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

import trio

from benchmarks.catalogue import Report
from benchmarks.fleet import QUEUE, configuration, connected_store, job_id, submit
from benchmarks.noop import SERVICE
from benchmarks.server import Server, redis_server
from gateway.models import (
    ClaimRequest,
    ClassId,
    Epoch,
    JobId,
    JobSpec,
    Settlement,
    SettlementKind,
    Submission,
    WorkerId,
)
from gateway.store import scripts
from gateway.store.calls import ScriptCall
from gateway.store.keys import QueueKeys

MISSING = "redis-benchmark is not on PATH: install the Debian package redis-tools to measure the ceiling"
RANDOM = "__rand_int__"
#: Connections that keep Redis busy: two are enough here, four leave room on faster machines.
CONNECTIONS = 4
#: Claimed jobs per settlement drawn: a tenth is drawn, so 5 % of the draws are expected to be duplicates.
CLAIMED_PER_DRAW = 10
#: The largest range that ``redis-benchmark`` reads (a C int); beyond it silently substitutes nothing.
RANDOM_RANGE = 2**31 - 1
LEASE_S = 15.0
EPOCH = Epoch(1)
RUN_TIMEOUT_S = 600.0

#: Gives every claimed job the one epoch that a fixed command can name.
_SET_EPOCH = """
local rows = redis.call('HMGET', KEYS[1], unpack(ARGV, 2))
local changes = {}
for i = 1, #rows do
  local record = cjson.decode(rows[i])
  record[2] = ARGV[1]
  changes[#changes + 1] = ARGV[i + 1]
  changes[#changes + 1] = cjson.encode(record)
end
return redis.call('HSET', KEYS[1], unpack(changes))
"""


@dataclass(frozen=True, slots=True)
class _Cost:
    """One operation on its own: jobs per second, and processor time of Redis per job."""

    rate: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class _Rates:
    """The three operations."""

    submit: _Cost
    claim: _Cost
    settle: _Cost
    duplicate_share: float

    def report(self) -> Report:
        drain = 1 / (1 / self.claim.rate + 1 / self.settle.rate)
        return {
            "ceiling_jobs_per_second": round(1 / (1 / self.submit.rate + 1 / drain), 1),
            "drain_ceiling_jobs_per_second": round(drain, 1),
            "ceiling_redis_cpu_us_per_job": round(
                self.submit.cpu_us + self.claim.cpu_us + self.settle.cpu_us, 1
            ),
            "drain_ceiling_redis_cpu_us_per_job": round(self.claim.cpu_us + self.settle.cpu_us, 1),
            "ceiling_parts": {
                "submit_jobs_per_second": round(self.submit.rate),
                "claim_jobs_per_second": round(self.claim.rate),
                "settle_jobs_per_second": round(self.settle.rate),
                "settle_duplicate_share": round(self.duplicate_share, 4),
            },
        }


def ceiling(*, jobs: int, batches: dict[str, int]) -> Report:
    """The rate that no client can exceed: Redis executes one script at a time.

    Args:
        jobs: jobs per operation.
        batches: jobs per call of ``submit``, ``claim`` and ``settle``, as the measured gateway sent them.

    Returns:
        Rates as ``_Rates.report`` names them; null, with the reason, when ``redis-benchmark`` is missing.
    """
    if shutil.which("redis-benchmark") is None:
        return {
            "ceiling_jobs_per_second": None,
            "drain_ceiling_jobs_per_second": None,
            "ceiling_redis_cpu_us_per_job": None,
            "drain_ceiling_redis_cpu_us_per_job": None,
            "ceiling_parts": None,
            "ceiling_missing": MISSING,
        }
    with redis_server() as server:
        submit_cost = _submit_cost(server, jobs, batches["submit"])
    with redis_server() as server:
        claimed = jobs * 2
        trio.run(_prefill, server.url, claimed)
        server.settle_down()
        claim_cost = _claim_cost(server, claimed, batches["claim"])
        _set_epochs(server, claimed)
        server.settle_down()
        settle_cost, duplicates = _settle_cost(server, claimed, batches["settle"])
    return _Rates(submit_cost, claim_cost, settle_cost, duplicates).report()


async def _prefill(url: str, jobs: int) -> None:
    async with connected_store(url) as store:
        await submit(store, range(jobs))


def _benchmark(server: Server, call: ScriptCall, calls: int, random_range: int) -> tuple[float, float]:
    """Send one script call again and again; returns calls per second and processor seconds of Redis."""
    server.client.script_load(call.script.source)
    words: list[str] = ["EVALSHA", call.script.sha, str(len(call.keys)), *call.keys]
    words += [word.decode() if isinstance(word, bytes) else str(word) for word in call.args]
    options = ["-p", str(server.port), "-c", str(CONNECTIONS), "-n", str(calls), "-r", str(random_range)]
    cpu_s = server.cpu_s()
    done = subprocess.run(
        ["redis-benchmark", *options, "--csv", *words],
        check=True,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    # The title column repeats the whole command; the seven figures behind it begin with the rate.
    figures = done.stdout.strip().splitlines()[-1].rsplit('","', 7)[1:]
    return float(figures[0]), server.cpu_s() - cpu_s


def _random_id() -> JobId:
    return JobId(f"job-{RANDOM}")


def _submit_cost(server: Server, jobs: int, batch: int) -> _Cost:
    spec = JobSpec(service=SERVICE, payload={"size": 1})
    items = [Submission(job_id=_random_id(), spec=spec) for _ in range(batch)]
    keys, limits = QueueKeys(QUEUE), configuration(1, 1).limits.store_limits()
    call = scripts.submit_call(keys, limits, items)
    calls = max(CONNECTIONS, jobs // batch)
    rate, cpu_s = _benchmark(server, call, calls, RANDOM_RANGE)
    stored = int(server.client.hlen(keys.jobs))
    return _Cost(rate * stored / calls, cpu_s / stored * 1e6)


def _claim_cost(server: Server, jobs: int, batch: int) -> _Cost:
    keys, limits = QueueKeys(QUEUE), configuration(1, 1).limits.store_limits()
    request = ClaimRequest(RANDOM, WorkerId("benchmark/noop"), batch, batch, (ClassId(SERVICE),))
    call = scripts.claim_call(keys, limits, LEASE_S, "benchmark", [request])
    calls = max(CONNECTIONS, jobs // batch)
    rate, cpu_s = _benchmark(server, call, calls, RANDOM_RANGE)
    claimed = int(server.client.zcard(keys.leases))
    return _Cost(rate * claimed / calls, cpu_s / claimed * 1e6)


def _set_epochs(server: Server, jobs: int) -> None:
    keys = QueueKeys(QUEUE)
    for first in range(0, jobs, 1000):
        ids = [job_id(number) for number in range(first, min(first + 1000, jobs))]
        server.client.eval(_SET_EPOCH, 1, keys.jobs, str(EPOCH), *ids)


def _settle_cost(server: Server, jobs: int, batch: int) -> tuple[_Cost, float]:
    """Rate and time of the accepted settlements, and the share of draws that were none."""
    keys, limits = QueueKeys(QUEUE), configuration(1, 1).limits.store_limits()
    items = [_settlement() for _ in range(batch)]
    call = scripts.settle_call(keys, limits, items)
    calls = max(CONNECTIONS, jobs // CLAIMED_PER_DRAW // batch)
    rate, cpu_s = _benchmark(server, call, calls, jobs)
    accepted = int(server.client.zcard(keys.finished))
    return _Cost(rate * accepted / calls, cpu_s / accepted * 1e6), 1 - accepted / (calls * batch)


def _settlement() -> Settlement:
    """As the runner builds it for a no-op job."""
    return Settlement(
        job_id=_random_id(),
        epoch=EPOCH,
        class_id=ClassId(SERVICE),
        kind=SettlementKind.COMPLETED,
        body="null",
        detail='{"endpoint":"http://127.0.0.1:1"}',
    )
