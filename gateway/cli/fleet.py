"""Commands about the fleet: register, services, workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import Common, command, parse_json
from gateway.cli.output import age, remark, write_json, write_line, write_table
from gateway.errors import InvalidRegistration, StoreError

if TYPE_CHECKING:
    from gateway.client import Client
    from gateway.registration import ServiceEntry


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "register")(register_service)
    command(app, "services")(services)
    command(app, "workers")(workers)


def register_service(
    common: Common,
    service_id: Annotated[str, typer.Argument(help="Name of the entry; a label, nothing is read from it.")],
    url: Annotated[str | None, typer.Argument(help="Base address; not needed with --remove.")] = None,
    service: Annotated[str, typer.Option(help="Kind of backend, for example comfyui.")] = "",
    protocol: Annotated[str, typer.Option(help="http, websocket or grpc.")] = "http",
    instance: Annotated[str, typer.Option(help="The instance's own name, where it has one.")] = "",
    machine: Annotated[str, typer.Option(help="The host it runs on; a label.")] = "",
    capabilities: Annotated[str, typer.Option(help="What jobs may require of it, a JSON object.")] = "{}",
    ttl_s: Annotated[float, typer.Option(help="How long the entry is believed, seconds.")] = 30.0,
    unhealthy: Annotated[bool, typer.Option("--unhealthy", help="It is there and takes no jobs.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Register once instead of until Ctrl-C.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Sign it off.")] = False,
) -> int:
    """Tell the gateways where a service is. The entry lives as long as this command runs.

    \b
    Beside a service it is its sidecar: the entry is renewed until SIGTERM or Ctrl-C and
    then signed off. Workers that name the instance, or whose `discover` fits, go there.
    \b
    Examples:
      gateway register gpu1-comfy http://10.0.0.7:8188 --service comfyui --protocol websocket
      gateway register sim-0 http://127.0.0.1:8299 --service simulation --instance sim-0 --once
      gateway register sim-0 --remove
    """
    with common.client() as client:
        if remove:
            client.deregister(service_id)
            _tell(common, service_id, "signed off")
            return 0
        if url is None:
            raise InvalidRegistration("register: give the address of the service, or --remove")
        from gateway.registration import ServiceEntry

        told = parse_json(capabilities, "option --capabilities")
        if not isinstance(told, dict):
            raise InvalidRegistration(f"option --capabilities: expected a JSON object, not {capabilities!r}")
        entry = ServiceEntry(
            service=service,
            url=url,
            protocol=protocol,
            instance=instance,
            machine=machine,
            healthy=not unhealthy,
            capabilities=told,
        )
        _tell(common, service_id, client.register(service_id, entry, ttl_s).value)
        if not once:
            _keep(client, service_id, entry, ttl_s)
    return 0


def _tell(common: Common, service_id: str, status: str) -> None:
    if common.json:
        write_json({"service": service_id, "status": status})
    else:
        write_line(f"{service_id} {status}")


def _keep(client: Client, service_id: str, entry: ServiceEntry, ttl_s: float) -> None:
    """Renew until a signal, then sign off."""
    import signal
    import threading

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(ttl_s / 3):
        try:
            client.register(service_id, entry, ttl_s)
        except StoreError as error:
            remark(f"not renewed, trying again: {error}")
    client.deregister(service_id)


def services(common: Common) -> int:
    """Show the registered services, and which workers use them.

    \b
    Example:
      gateway services --json
    """
    import msgspec

    from gateway.overview import service_rows

    with common.client() as client:
        found = service_rows(client.services(), client.workers(), now_ms=client.now_ms())
    if common.json:
        write_json([{**msgspec.to_builtins(row), "state": row.state} for row in found])
        return 0
    if not found:
        write_line("no service is registered")
        return 0
    rows = [
        (
            row.id,
            f"{row.service}-{row.protocol}",
            row.url,
            row.state,
            ", ".join(row.workers) or "nobody",
            age(row.ends_in_s * 1000),
        )
        for row in found
    ]
    write_table(("service", "speaks", "address", "state", "used by", "believed for"), rows)
    return 0


def workers(common: Common) -> int:
    """Show the workers with their endpoints, breakers and slots. They tell it themselves.

    \b
    Example:
      gateway workers --json
    """
    with common.client() as client:
        now_ms, found = client.now_ms(), client.workers()
    if common.json:
        write_json(found)
        return 0
    if not found:
        write_line("no worker is registered")
        return 0
    rows = []
    for worker in found:
        endpoints = worker.description.get("endpoints") or [{}]
        for number, endpoint in enumerate(endpoints):
            first = number == 0
            rows.append(
                (
                    worker.worker_id if first else "",
                    worker.connector if first else "",
                    endpoint.get("url", worker.endpoint) or "none",
                    endpoint.get("origin", ""),
                    endpoint.get("breaker", ""),
                    endpoint.get("refusal", worker.refusal) or "claims",
                    f"{'?' if worker.running is None else worker.running}/{worker.slots}" if first else "",
                    age(now_ms - worker.seen_ms) if first else "",
                )
            )
    write_table(("worker", "connector", "endpoint", "from", "breaker", "state", "slots", "seen"), rows)
    return 0
