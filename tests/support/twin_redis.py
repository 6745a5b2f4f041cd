"""A synchronous client of the simulated Redis' own core: what is compared with a real Redis is what fleets run on."""

from __future__ import annotations

import fakeredis
import redis
from fakeredis._clients._sync import FakeRedisConnection

from simulator.redis_core import TwinSocket


class TwinConnection(FakeRedisConnection):
    """fakeredis' connection of redis-py, above our socket."""

    def _connect(self) -> TwinSocket:
        assert self._server is not None
        return TwinSocket(
            self._server, client_class=self._client_class, db=self.db, client_info=self._client_info
        )


def twin_client() -> redis.Redis:
    """A client of a fresh server."""
    return fakeredis.FakeRedis(server=fakeredis.FakeServer(), connection_class=TwinConnection)
