"""Checkers of Python modules: each takes one module and returns its violations as ``path:line: text``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.tidy.sources import Module

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500

#: Modules that decide and do nothing: no I/O, no clock, no randomness of their own.
PURE_MODULES = (
    "gateway/lifecycle",
    "gateway/retry",
    "gateway/matching",
    "gateway/breaker",
    "gateway/audit",
    "gateway/audit_conditions",
    "gateway/schedules",
    "gateway/models",
    "gateway/legacy",
    "gateway/rollout",
    "simulator/behaviour",
    "simulator/faults",
)
IMPURE = {
    *("trio", "anyio", "asyncio", "socket", "threading", "subprocess"),
    *("redis", "coredis", "httpx", "httpcore", "grpc", "trio_websocket"),
    *("time", "random", "secrets", "uuid"),
}
#: Where a job passes through: everything here must replay from one seed under virtual time.
JOB_PATH = (
    "gateway/intake",
    "gateway/runner",
    "gateway/leases",
    "gateway/recovery",
    "gateway/health",
    "gateway/supervisor",
    "gateway/settling",
    "gateway/spool",
    "gateway/store",
    "gateway/connectors",
    "protocols",
)
#: The throw-away server of demos and tests: a child process, started and watched in real time.
OFF_JOB_PATH = ("gateway/store/embedded", "gateway/store/embedded_files", "gateway/store/embedded_keeper")
REDIS_CLIENTS = ("gateway/store", "gateway/client")
#: Modules that may open a nursery, each with the reason why its tasks cannot outlive one call.
NURSERIES = {
    "gateway/supervisor": "the tree of everything that lives long",
    "gateway/client/asynchronous": "a client's connections; they end with its `async with`",
    "gateway/connectors/a1111/http": "the looks at a generation's progress; they end with its request",
    "gateway/context": "one beat of the progress pump; ends with the notes of that beat",
    "protocols/grpc_server": "a server's calls; they end with the server's task",
    "protocols/http_server": "a server's connections and each one's reader; they end with the server's task",
    "simulator/contract/bench": "one case's twin and attempts; they end with the case",
    "protocols/websocket": "a connection's reader and heartbeat; both end with its `async with`",
    "protocols/websocket_link": "the library's reader of one connection; ends with that connection's task",
    "protocols/websocket_session": "a session's reconnect loop; ends with its `async with`",
    "simulator/services/served": "one instance's listener and its ticks; they end with the instance",
    "simulator/services/websocket": "one socket's subscriptions; they end with the socket",
    "simulator/dialects/comfyui_sockets": "one socket's reader beside its writer; both end with the socket",
    "simulator/services/grpc_wire": "one call: its handler; ends with the call",
    "simulator/services/grpc_served": "one instance's listener and its ticks; they end with the instance",
    "simulator/chaos": "one task per lasting incident; all end with the safety phase",
    "simulator/cluster": "a simulated client's connection; ends with its `async with`",
    "simulator/run": "the top of a simulated run",
    "simulator/serving": "the process's own top: all instances of a simulated fleet",
    "gateway/store/connection": "one connection's reader and listener; both end with that connection",
}
#: Modules of the job path that touch threads, each with the reason why none of them decides anything.
THREADS = {
    "protocols/grpc_core": "grpcio has no interface for trio; its threads only knock at trio's door (decision 6)",
    "protocols/grpc_server": "the same on the serving side, for simulated services and tests",
}
THREADED = {"threading", "_thread", "queue", "concurrent", "multiprocessing"}
OPENERS = {"open_nursery", "create_task_group"}
BANNED_WORDS = {
    "TO" + "DO": "finish it, or write it into the changelog as missing",
    "FIX" + "ME": "fix it",
    "XX" + "X": "say what is meant",
}


def inside(path: str, names: tuple[str, ...] | dict[str, str]) -> bool:
    """Whether a module is one of the named modules, or in one of the named packages."""
    stem = path.removesuffix(".py")
    return any(stem == name or stem.startswith(name + "/") for name in names)


def at(module: Module, node: ast.AST, text: str) -> str:
    return f"{module.path}:{getattr(node, 'lineno', 1)}: {text}"


def _type_checking_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes under ``if TYPE_CHECKING:``, which never run."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in node.body
        for inner in ast.walk(statement)
    }


def imports(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """Every import that runs, at any depth, by its full dotted name."""
    skipped = _type_checking_only(module.tree)
    for node in ast.walk(module.tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def length(module: Module) -> list[str]:
    """Functions and modules short enough to be read at once."""
    found = []
    lines = module.text.count("\n")
    if lines > MODULE_LINES_MAX:
        found.append(f"{module.path}:1: {lines} lines, at most {MODULE_LINES_MAX}")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                found.append(at(module, node, f"{node.name}: {lines} lines, at most {FUNCTION_LINES_MAX}"))
    return found


def purity(module: Module) -> list[str]:
    """Pure modules import nothing that acts; time and randomness come in as arguments."""
    if not inside(module.path, PURE_MODULES):
        return []
    return [
        at(module, node, f"a pure module imports {name}")
        for node, name in imports(module)
        if name.split(".")[0] in IMPURE
    ]


def redis_clients(module: Module) -> list[str]:
    """Only the store (and the producers' client) speaks to Redis."""
    if not inside(module.path, ("gateway", "protocols")) or inside(module.path, REDIS_CLIENTS):
        return []
    return [
        at(module, node, f"imports {name}; only {', '.join(REDIS_CLIENTS)} may")
        for node, name in imports(module)
        if name.split(".")[0] in {"redis", "coredis"}
    ]


def foreign_imports(module: Module) -> list[str]:
    """What is shipped does not lean on tests or benchmarks."""
    if not inside(module.path, ("gateway", "simulator", "protocols")):
        return []
    return [
        at(module, node, f"a shipped module imports {name}")
        for node, name in imports(module)
        if name.split(".")[0] in {"tests", "benchmarks"}
    ]


def nurseries(module: Module) -> list[str]:
    """Nurseries are opened where the list above says, and nowhere else."""
    if not inside(module.path, ("gateway", "simulator", "protocols")) or inside(module.path, NURSERIES):
        return []
    return [
        at(module, node, "opens a nursery: take one as an argument, or give a reason in NURSERIES")
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.Attribute) and node.attr in OPENERS)
        or (isinstance(node, ast.Name) and node.id in OPENERS)
    ]


def stale_nurseries(found: tuple[Module, ...]) -> list[str]:
    """A reason whose module no longer opens a nursery leaves the list."""
    return [
        f"{name}: listed in NURSERIES, opens none"
        for name in NURSERIES
        if (within := [module for module in found if inside(module.path, (name,))])
        and not any(opener in module.text for module in within for opener in OPENERS)
    ]


def _random_names(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Names bound to the module ``random``, and names bound to its class ``Random``."""
    whole, classes = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            whole |= {alias.asname or alias.name for alias in node.names if alias.name == "random"}
        elif isinstance(node, ast.ImportFrom) and node.module == "random":
            classes |= {alias.asname or alias.name for alias in node.names if alias.name == "Random"}
    return whole, classes


def _clock_use(node: ast.AST, whole: set[str], classes: set[str]) -> str | None:
    """Why this expression cannot be replayed, if so."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner, attribute = node.value.id, node.attr
        if owner in whole and attribute != "Random":
            return f"random.{attribute}"
        if owner in {"datetime", "date"} and attribute in {"now", "utcnow", "today"}:
            return f"{owner}.{attribute}"
        if (owner, attribute) == ("os", "urandom"):
            return "os.urandom"
    if isinstance(node, ast.Call):
        called = node.func
        if isinstance(called, ast.Name) and called.id in classes:
            return "a random source of its own"
        if isinstance(called, ast.Attribute) and called.attr == "Random":
            return "a random source of its own"
    return None


def injected(module: Module) -> list[str]:
    """On a job's path clock and random source are injected; ``random.Random`` may be named as a type."""
    if not inside(module.path, JOB_PATH) or inside(module.path, OFF_JOB_PATH):
        return []
    found = []
    for node, name in imports(module):
        root, _, rest = name.partition(".")
        if root in {"time", "uuid", "secrets"} or (root == "random" and rest not in {"", "Random"}):
            found.append(at(module, node, f"imports {name}: inject it"))
    whole, classes = _random_names(module.tree)
    found.extend(
        at(module, node, f"uses {reason}: inject it")
        for node in ast.walk(module.tree)
        if (reason := _clock_use(node, whole, classes))
    )
    return found


def threads(module: Module) -> list[str]:
    """No threads on a job's path, but where the list above gives a reason."""
    if not inside(module.path, JOB_PATH) or inside(module.path, OFF_JOB_PATH):
        return []
    if inside(module.path, THREADS):
        return []
    found = [
        at(module, node, f"imports {name}: no threads on a job's path, or give a reason in THREADS")
        for node, name in imports(module)
        if name.split(".")[0] in THREADED or name.split(".")[-1] in {"to_thread", "from_thread"}
    ]
    return found + [
        at(module, node, f"uses {node.attr}: no threads on a job's path, or give a reason in THREADS")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in {"to_thread", "from_thread"}
    ]


def stale_threads(found: tuple[Module, ...]) -> list[str]:
    """A reason whose module touches no thread any more leaves the list."""
    marks = (*THREADED, "to_thread", "from_thread")
    return [
        f"{name}: listed in THREADS, uses none"
        for name in THREADS
        if (within := [module for module in found if inside(module.path, (name,))])
        and not any(mark in module.text for module in within for mark in marks)
    ]


def banned(module: Module) -> list[str]:
    """No leftovers; output goes through the commands' own console."""
    calls = (
        {"breakpoint"} if inside(module.path, ("gateway/cli", "simulator/cli")) else {"breakpoint", "print"}
    )
    return words(module.path, module.text) + [
        at(module, node, f"calls {node.func.id}()")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls
    ]


def words(path: str, text: str) -> list[str]:
    """Banned words in any kind of text."""
    return [
        f"{path}:{number}: {word}: {instead}"
        for number, line in enumerate(text.splitlines(), 1)
        for word, instead in BANNED_WORDS.items()
        if re.search(rf"\b{word}\b", line)
    ]
