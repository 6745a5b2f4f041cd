"""An owner that does nothing by itself, for tests of the fence: ``python -m tests.chaos.claimer_process URL QUEUE``.

It claims one job, says so, waits for a line on standard input, tries to complete the job under the lease it had
claimed, and says the verdict. It believes in its lease however old that is: exactly what no owner should do.
"""

from __future__ import annotations

import json
import os
import sys

import trio

from gateway.models import ClaimRequest, Settlement, WorkerId
from tests.chaos.fleet import make_store

LEASE_S = 1.0


def tell(**fields: object) -> None:
    """Write one line in one system call."""
    os.write(1, json.dumps(fields).encode() + b"\n")


async def main(url: str, queue: str) -> None:
    """Claim, wait, complete."""
    async with trio.open_nursery() as nursery:
        store = make_store(url, queue, "claimer", lease_s=LEASE_S)
        await store.start(nursery)
        classes = tuple(await store.classes())
        (grant,) = (await store.claim(ClaimRequest("only", WorkerId("zombie"), 1, 1, classes))).grants
        tell(claimed=grant.job_id, epoch=grant.epoch)
        await trio.lowlevel.wait_readable(0)
        verdict, state = await store.settle(Settlement.completed(grant, body='"of the zombie"'))
        tell(verdict=verdict.value, state=state.value if state else None)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
