"""Transport adapters (HTTP, WebSocket, gRPC); they know no service."""

from __future__ import annotations

import os

# grpcio's core reads this when it is imported, which is why it stands here, before any module of ours can do that. By
# default it writes a line to standard error, past every log, whenever a peer that stops ends our calls; those are told
# as faults anyway, and a process that logs JSON should write nothing else. Who wants more says so in the environment.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
