"""Rules of the Python sources; every rule is shown to bite on a sample before it is trusted on the tree."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.tidy import python_rules as rules
from tests.tidy.sources import EVERYTHING, ROOT, Module, files, modules

Checker = Callable[[Module], list[str]]
CHECKERS: list[Checker] = [
    rules.length,
    rules.purity,
    rules.redis_clients,
    rules.foreign_imports,
    rules.nurseries,
    rules.injected,
    rules.threads,
    rules.banned,
]
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * rules.FUNCTION_LINES_MAX
BAD = [
    (rules.length, "gateway/a.py", LONG_FUNCTION),
    (rules.length, "tests/x/test_a.py", "async " + LONG_FUNCTION),
    (rules.length, "gateway/a.py", "x = 1\n" * (rules.MODULE_LINES_MAX + 1)),
    (rules.purity, "gateway/lifecycle.py", "import time\n"),
    (rules.purity, "gateway/models.py", "def f():\n    from random import uniform\n"),
    (rules.purity, "simulator/faults.py", "import trio.lowlevel as low\n"),
    (rules.purity, "simulator/behaviour/comfyui.py", "import asyncio\n"),
    (rules.redis_clients, "gateway/runner.py", "from coredis import Redis\n"),
    (rules.redis_clients, "protocols/base.py", "import redis\n"),
    (rules.foreign_imports, "simulator/cli.py", "from tests.tidy import sources\n"),
    (rules.nurseries, "gateway/runner.py", "async with trio.open_nursery() as nursery:\n    pass\n"),
    (rules.nurseries, "simulator/explore.py", "from trio import open_nursery\nopen_nursery()\n"),
    (rules.nurseries, "gateway/health.py", "async with anyio.create_task_group() as group:\n    pass\n"),
    (rules.injected, "gateway/intake.py", "import time\n"),
    (rules.injected, "gateway/store/redis.py", "from uuid import uuid4\n"),
    (rules.injected, "protocols/http.py", "import random\nrandom.uniform(0, 1)\n"),
    (rules.injected, "gateway/connectors/a1111/http.py", "import random as r\nx = r.random()\n"),
    (rules.injected, "gateway/leases.py", "from random import Random\nsource = Random()\n"),
    (rules.injected, "gateway/leases.py", "import random\nsource = random.Random(1)\n"),
    (rules.injected, "gateway/spool.py", "from random import choice\n"),
    (rules.injected, "gateway/spool.py", "from datetime import datetime\nnow = datetime.now()\n"),
    (rules.threads, "gateway/runner.py", "import threading\n"),
    (rules.threads, "protocols/grpc.py", "async def f(): await trio.to_thread.run_sync(g)\n"),
    (rules.threads, "gateway/connectors/openinference/grpc.py", "from trio import to_thread\n"),
    (rules.banned, "gateway/a.py", "x = 1  # TO" + "DO: later\n"),
    (rules.banned, "benchmarks/a.py", "print('x')\n"),
    (rules.banned, "gateway/cli.py", "breakpoint()\n"),
]
GOOD = [
    (rules.length, "gateway/a.py", "def f():\n" + "    x = 1\n" * (rules.FUNCTION_LINES_MAX - 1)),
    (rules.purity, "gateway/retry.py", "if TYPE_CHECKING:\n    from random import Random\n"),
    (rules.purity, "gateway/runner.py", "import trio\n"),
    (rules.redis_clients, "gateway/store/redis.py", "import coredis\n"),
    (rules.redis_clients, "gateway/client.py", "import redis\n"),
    (rules.nurseries, "gateway/supervisor.py", "trio.open_nursery()\n"),
    (rules.injected, "gateway/intake.py", "import random\ndef f(source: random.Random) -> None: ...\n"),
    (rules.injected, "gateway/store/embedded.py", "import time\n"),
    (rules.injected, "gateway/telemetry.py", "import time\n"),
    (rules.threads, "protocols/grpc_core.py", "async def f(): await trio.to_thread.run_sync(g)\n"),
    (rules.threads, "gateway/telemetry/build.py", "import threading\n"),
    (rules.banned, "gateway/cli.py", "console.print('x')\n"),
    (rules.banned, "gateway/a.py", "console.print('print()')\n"),
]


@pytest.mark.parametrize("checker", CHECKERS, ids=lambda checker: checker.__name__)
def test_the_tree_keeps_the_rule(checker: Checker) -> None:
    """No module of the repository breaks the rule."""
    assert [violation for module in modules(*EVERYTHING) for violation in checker(module)] == []


@pytest.mark.parametrize(("checker", "path", "text"), BAD)
def test_the_rule_bites(checker: Checker, path: str, text: str) -> None:
    """A sample that breaks the rule is reported, with its place."""
    found = checker(Module.of(path, text))
    assert found
    assert all(violation.startswith(f"{path}:") for violation in found)


@pytest.mark.parametrize(("checker", "path", "text"), GOOD)
def test_the_rule_spares(checker: Checker, path: str, text: str) -> None:
    """What the rule allows is not reported."""
    assert checker(Module.of(path, text)) == []


def test_every_checker_has_a_bad_sample() -> None:
    """A rule nobody saw failing proves nothing."""
    assert {checker.__name__ for checker in CHECKERS} == {checker.__name__ for checker, _, _ in BAD}


def test_reasons_for_nurseries_are_current() -> None:
    """The list of nurseries names only modules that open one."""
    assert rules.stale_nurseries(modules(*EVERYTHING)) == []
    assert rules.stale_nurseries((Module.of("gateway/supervisor.py", "x = 1\n"),))


def test_reasons_for_threads_are_current() -> None:
    """The list of threads names only modules that touch one."""
    assert rules.stale_threads(modules(*EVERYTHING)) == []
    assert rules.stale_threads((Module.of("protocols/grpc_core.py", "x = 1\n"),))


@pytest.mark.parametrize("pattern", ["*.lua", "*.html", "*.css", "*.js"])
def test_other_sources_have_no_leftovers(pattern: str) -> None:
    """Scripts, templates and styles are finished too."""
    paths = [path for top in EVERYTHING for path in files(top, pattern)]
    found = [
        violation
        for path in paths
        for violation in rules.words(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert found == []
