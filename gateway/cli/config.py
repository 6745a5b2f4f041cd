"""Commands about the configuration: show, check, schema, set, unset, import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.common import Common, command
from gateway.cli.output import remark, write_json, write_line, write_table
from gateway.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from gateway.config_sources import Loaded

_LOCAL = typer.Option("--local", help="Do not ask Redis for the fleet's overrides.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="The configuration, and overrides for the whole fleet.",
        no_args_is_help=True,
    )
    app.add_typer(group, name="config")
    command(group, "show")(show)
    command(group, "check")(check)
    command(group, "schema")(schema)
    command(group, "set")(set_override)
    command(group, "unset")(unset_override)
    command(group, "import")(import_legacy)


def _load(common: Common, *, local: bool) -> tuple[Loaded, str]:
    """The configuration with its origins, and why Redis had no say (empty when it had)."""
    sources = common.sources()
    loaded = sources.load()
    if local:
        return loaded, "not asked (--local)"
    try:
        with common.client(loaded.config) as client:
            fleet = client.overrides().values
    except StoreError as error:
        return loaded, str(error)
    return sources.load(fleet), ""


def show(common: Common, local: Annotated[bool, _LOCAL] = False) -> int:
    """Show every value and where it came from; secrets are hidden.

    \b
    From weak to strong: default, file (with the line), environment (the variable),
    Redis (the fleet's override), command line (the option).
    \b
    Examples:
      gateway config show --config gateway.toml
      gateway config show --json | jq '.values[] | select(.source != "default")'
    """
    from gateway.config_paths import text_of

    loaded, missing = _load(common, local=local)
    entries = [(text_of(path), value, origin) for path, value, origin in loaded.entries()]
    if common.json:
        values = [
            {"key": key, "value": value, "source": origin.kind.value, "place": origin.place}
            for key, value, origin in entries
        ]
        write_json({"values": values, "redis": missing or "asked"})
        return 0
    import msgspec

    rows = [(key, msgspec.json.encode(value).decode(), str(origin)) for key, value, origin in entries]
    write_table(("key", "value", "from"), rows)
    if missing:
        remark(f"without the fleet's overrides: {missing}")
    return 0


def check(common: Common, local: Annotated[bool, _LOCAL] = False) -> int:
    """Check every source of the configuration. Exit code 2 and the first mistakes if there are any.

    \b
    Example:
      gateway config check --config gateway.toml
    """
    loaded, missing = _load(common, local=local)
    settings = loaded.config
    if common.json:
        write_json(
            {"ok": True, "workers": sorted(settings.workers), **({"redis": missing} if missing else {})}
        )
        return 0
    write_line(f"the configuration is valid: queue {settings.queue}, {len(settings.workers)} worker(s)")
    if missing:
        remark(f"without the fleet's overrides: {missing}")
    return 0


def schema(common: Common) -> int:
    """Print the JSON Schema of the configuration file. It is for editors, and for checks before a roll-out.

    \b
    Example:
      gateway config schema > gateway.schema.json
    """
    from gateway.config import json_schema

    if common.json:
        write_json(json_schema())
        return 0
    import msgspec

    write_line(msgspec.json.format(msgspec.json.encode(json_schema())).decode())
    return 0


def set_override(
    common: Common,
    key: Annotated[str, typer.Argument(help="A key as in the file, such as limits.unfinished_max.")],
    value: Annotated[str, typer.Argument(help="Its value, JSON; text may go without quotation marks.")],
) -> int:
    """Set one value for every gateway of the queue. It is checked before it is stored.

    \b
    Running gateways take up slots, limits, rollout and the log level at once; for all
    else they say that a restart is needed. An override is stronger than files and
    environment, and weaker than a command line. `workers.*` means every worker.
    \b
    Examples:
      gateway config set limits.unfinished_max 200000
      gateway config set 'workers.*.slots' 4
      gateway config set telemetry.log_level debug
    """
    from gateway.config_fleet import fleet_path, parse_value

    parsed = parse_value(fleet_path(key), value)
    if parsed is None:
        raise ConfigError(f"{key}: null is no value; `gateway config unset {key}` removes an override")
    return _configure(common, {key: parsed})


def unset_override(
    common: Common, keys: Annotated[list[str], typer.Argument(help="Keys of overrides to remove.")]
) -> int:
    """Remove overrides: each machine's own settings hold again.

    \b
    Example:
      gateway config unset limits.unfinished_max 'workers.*.slots'
    """
    return _configure(common, dict.fromkeys(keys))


def _configure(common: Common, changes: dict[str, Any]) -> int:
    with common.client() as client:
        overrides = client.configure(changes)
        queue = client.queue
    if common.json:
        import msgspec

        values = {key: msgspec.json.decode(text) for key, text in sorted(overrides.values.items())}
        write_json({"queue": queue, "revision": overrides.revision, "overrides": values})
        return 0
    write_line(f"queue {queue} has {len(overrides.values)} override(s):")
    for key, text in sorted(overrides.values.items()):
        write_line(f"{key} = {text}")
    return 0


def import_legacy(
    common: Common,
    mapping: Annotated[
        Path | None, typer.Argument(help="The replaced system's service-mapping.json.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option("--workers", help='Its variable WORKERS, as in "comfyui:2,simulation:4".')
    ] = None,
) -> int:
    """Translate the replaced system's settings into TOML. It is printed; nothing is changed.

    \b
    Examples:
      gateway config import --workers "comfyui:2,simulation:4" > gateway.toml
      gateway config import service-mapping.json --workers "$WORKERS" > gateway.toml
    """
    from gateway.config_import import import_settings

    imported = import_settings(mapping, workers)
    if common.json:
        write_json({"settings": imported.settings, "remarks": imported.remarks})
        return 0
    for text in imported.remarks:
        write_line(f"# {text}")
    write_line(imported.toml().rstrip())
    return 0
