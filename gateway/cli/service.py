"""Commands that run something or show what is installed: run, demo, connectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.common import Common, command
from gateway.cli.output import write_json, write_line, write_table
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from gateway.config import GatewayConfig
    from gateway.reloading import Reread
    from gateway.supervisor import Gateway
    from gateway.telemetry import Telemetry


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "run")(run)
    command(app, "demo")(demo)
    command(app, "connectors")(connectors)


def parse_worker(text: str, slots: int) -> tuple[str, dict[str, Any]]:
    """Read ``name=connector@endpoint``.

    Raises:
        ConfigError: another form.
    """
    name, equals, rest = text.partition("=")
    connector, at, endpoint = rest.partition("@")
    if not (name and equals and connector and at and endpoint):
        raise ConfigError(
            f"--worker {text!r}: expected NAME=CONNECTOR@ENDPOINT, as in a=simulation-http@http://127.0.0.1:8188"
        )
    return name, {"connector": connector, "endpoint": endpoint, "slots": slots}


def run(
    common: Common,
    worker: Annotated[
        list[str] | None, typer.Option("--worker", "-w", help="NAME=CONNECTOR@ENDPOINT; may be repeated.")
    ] = None,
    slots: Annotated[int, typer.Option(help="Jobs at once for each --worker.")] = 1,
    api_port: Annotated[
        int | None, typer.Option(help="Serve /metrics, /livez and /readyz on this port; 0 takes a free one.")
    ] = None,
) -> int:
    """Claim jobs and run them until SIGTERM or Ctrl-C. A second one stops at once.

    \b
    Examples:
      gateway run --worker a=simulation-http@http://127.0.0.1:8188 --slots 4
      gateway run --config gateway.toml --queue renders --api-port 9100
    """
    more: dict[str, Any] = {}
    options: dict[tuple[str, ...], str] = {}
    if worker:
        parsed = [parse_worker(text, slots) for text in worker]
        more["workers"] = dict(parsed)
        if len(more["workers"]) < len(parsed):
            raise ConfigError("--worker: each name may be given once")
        options |= {("workers", name): f"--worker {name}" for name, _ in parsed}
        options |= {("workers", name, "slots"): "--slots" for name, _ in parsed}
    if api_port is not None:
        more["api"] = {"port": api_port}
        options["api", "port"] = "--api-port"
    sources = common.sources(more, options)
    # The client stays: without a redis_url it holds the embedded Redis, which would else stop and start in between.
    with common.client(sources.load().config) as client:
        settings = sources.load(client.overrides().values).config
        _run(settings, as_json=common.json, reread=lambda fleet: sources.load(fleet).config)
    return 0


def _run(settings: GatewayConfig, *, as_json: bool, reread: Reread) -> None:
    from gateway.process import run_process
    from gateway.telemetry import build_telemetry, configure_logging

    logging = configure_logging(settings.telemetry)
    telemetry = build_telemetry(settings.telemetry)
    ready: dict[str, Any] = {"event": "ready", "queue": settings.queue, "workers": list(settings.workers)}

    def on_ready(gateway: Gateway) -> None:
        if as_json:
            write_json(ready)
        else:
            names = ", ".join(worker.worker_id for worker in gateway.workers)
            page = f"; pages on {ready['api']}" if "api" in ready else ""
            write_line(f"gateway ready: queue {settings.queue}, workers {names}{page}")

    try:
        run_process(
            settings,
            telemetry,
            extra_services=_pages(settings, telemetry, ready),
            on_ready=on_ready,
            reread=reread,
            on_log_level=logging.set_level,
        )
    finally:
        telemetry.shutdown()
        logging.remove()


def _pages(
    settings: GatewayConfig, telemetry: Telemetry, ready: dict[str, Any]
) -> Callable[[Gateway], tuple[Callable[..., Any], ...]]:
    """The HTTP pages as further service tasks; none while no port is set. Their address goes into ``ready``."""

    def services(gateway: Gateway) -> tuple[Callable[..., Any], ...]:
        if settings.api.port is None:
            return ()
        import trio

        from gateway.api import serve_api
        from protocols.http_server import ServerHandle

        class Told:
            """Notes the port before it tells the nursery."""

            def __init__(self, status: trio.TaskStatus[None]) -> None:
                self._status = status

            def started(self, handle: ServerHandle) -> None:
                ready["api"] = f"http://{settings.api.host}:{handle.port}"
                self._status.started()

        async def pages(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            told: Any = Told(task_status)
            await serve_api(settings.api, telemetry, gateway.status, services=gateway.store, task_status=told)

        return (pages,)

    return services


def demo(common: Common) -> int:
    """Run a small fleet with faults, and print what held. One gateway is killed meanwhile.

    \b
    Example:
      gateway demo --json
    """
    from gateway.demo import run_demo

    return run_demo(json_output=common.json)


def connectors(common: Common) -> int:
    """List the installed connectors and what each service can do.

    \b
    Example:
      gateway connectors --json
    """
    import msgspec

    from gateway.connectors.registry import default_registry

    registry = default_registry()
    entries: list[dict[str, Any]] = []
    for key in registry.keys:
        try:
            found = registry.load(key)
        except GatewayError as error:  # one broken package must not hide the others
            entries.append({"key": key, "error": str(error)})
            continue
        entries.append(
            {
                "key": key,
                "service": found.service,
                "class": f"{found.__module__}.{found.__qualname__}",
                "capabilities": msgspec.to_builtins(found.capabilities),
            }
        )
    if common.json:
        write_json(entries)
        return 0
    rows = [
        (
            entry["key"],
            entry.get("service", ""),
            ", ".join(name for name, can in entry.get("capabilities", {}).items() if can),
            entry.get("error", entry.get("class", "")),
        )
        for entry in entries
    ]
    write_table(("connector", "service", "can", "class"), rows)
    return 0
