"""A connection of fakeredis, with its way from a script to a command made short.

fakeredis compiles a script each time it runs, collects Lua's garbage after each run, and looks for new globals and
works out the arguments anew at each command: half of a simulated run's processor time. Here that is done once. Anything
that our scripts do not do is left to the original; ``tests/store/test_store_differential.py`` holds the outcome to a
real Redis, reply by reply.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from fakeredis import _msgs as msgs
from fakeredis._commands import COMMANDS_WITH_SUB, SUPPORTED_COMMANDS, Key, Signature
from fakeredis._core import CommandItem, FakeServer
from fakeredis._helpers import SimpleError
from fakeredis._socket import FakeSocket
from fakeredis._socket._resp import convert_to_resp2
from fakeredis.commands_mixins.scripting_mixin import _convert_redis_arg

SERVER_TYPE: Final = "redis"
#: What the original tells Lua after each script. Lua collects by itself, as it does in Redis.
_COLLECT = "collectgarbage()"


class _Way(NamedTuple):
    """How a script's call of one command with so many arguments is carried out.

    Attributes:
        function: name of the method.
        steps: place and type of each argument that is more than bytes.
        creates: whether a missing key gets an empty value.
        keeps_empty: whether an empty value stays.
        converts: whether its result is brought into the shape of RESP2.
    """

    function: str
    steps: tuple[tuple[int, Any], ...]
    creates: bool
    keeps_empty: bool
    converts: bool


_ways: dict[tuple[bytes, int], _Way | None] = {}


def _way(name: bytes, count: int) -> _Way | None:
    """The way of a command; None for what is left to the original."""
    plain_name = name.decode().lower()
    signature = SUPPORTED_COMMANDS.get(plain_name)
    if signature is None or plain_name in COMMANDS_WITH_SUB or msgs.FLAG_NO_SCRIPT in signature.flags:
        return None
    if SERVER_TYPE not in signature.server_types or not _fits(signature, count):
        return None
    types = [*signature.fixed]
    types.extend(signature.repeat[place % len(signature.repeat)] for place in range(count - len(types)))
    return _Way(
        function=signature.func_name,
        steps=tuple((place, kind) for place, kind in enumerate(types) if kind is not bytes),
        creates=msgs.FLAG_DO_NOT_CREATE not in signature.flags,
        keeps_empty=msgs.FLAG_LEAVE_EMPTY_VAL in signature.flags,
        converts=msgs.FLAG_SKIP_CONVERT_TO_RESP2 not in signature.flags,
    )


def _fits(signature: Signature, count: int) -> bool:
    """Whether a command takes so many arguments."""
    more = count - len(signature.fixed)
    return more == 0 or (more > 0 and bool(signature.repeat) and more % len(signature.repeat) == 0)


class _OnceCompiled:
    """A Lua runtime that compiles each script once."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._chunks: dict[bytes, Any] = {}
        self.table_from = runtime.table_from
        self.globals = runtime.globals

    def execute(self, source: bytes | str) -> Any:
        """Run a script of a client, as bytes, or what fakeredis itself says, as text."""
        if isinstance(source, str):
            return None if source == _COLLECT else self._runtime.execute(source)
        chunk = self._chunks.get(source)
        if chunk is None:
            chunk = self._chunks[source] = self._runtime.compile(source)
        return chunk()


class TwinSocket(FakeSocket):
    """One connection to the simulated Redis."""

    _unread = b""

    def take(self, data: bytes) -> None:
        """Run the commands that are complete with these bytes; the rest waits for more."""
        buffer, place = self._unread + data if self._unread else data, 0
        while (found := _command(buffer, place)) is not None:
            fields, place = found
            self._process_command(fields)
        self._unread = buffer[place:]

    def sendall(self, data: Any) -> None:
        """The way in of redis-py's connections, which tests use; they bring bytes."""
        self.take(data)

    def _get_server_runtime(self, server: FakeServer) -> Any:
        runtime = super()._get_server_runtime(server)
        if not isinstance(runtime, _OnceCompiled):
            runtime = server._lua_runtime = _OnceCompiled(runtime)  # type: ignore[attr-defined]
        return runtime

    def _keyspace_notifications(self, command_items: list[CommandItem], event: bytes) -> None:
        """None: a server with its default settings sends none either."""

    def _lua_redis_call(self, lua_runtime: Any, expected_globals: set[Any], op: bytes, *args: Any) -> Any:
        key = (op, len(args))
        try:
            way = _ways[key]
        except KeyError:
            way = _ways[key] = _way(*key)
        if way is None or self._pubsub:
            return super()._lua_redis_call(lua_runtime, expected_globals, op, *args)
        values = [arg if type(arg) is bytes else _convert_redis_arg(arg) for arg in args]
        return self._convert_redis_result(lua_runtime, self._carry_out(way, values))

    def _carry_out(self, way: _Way, values: list[Any]) -> Any:
        """Run a command; its keys are read, and written back even if it fails half way, as the original does."""
        db, items = self._db, []
        for place, kind in way.steps:
            if not isinstance(kind, Key):
                values[place] = kind.decode(values[place])
            elif kind.missing_return is not Key.UNSPECIFIED and values[place] not in db:
                return kind.missing_return
        for place, kind in way.steps:
            if isinstance(kind, Key):
                items.append(self._item(kind, values[place], creates=way.creates))
                values[place] = items[-1]
        self._subkey_events = []
        try:
            result = getattr(self, way.function)(*values)
        finally:
            for item in items:
                item.writeback(remove_empty_val=not way.keeps_empty)
        return convert_to_resp2(result, SERVER_TYPE) if way.converts else result

    def _item(self, kind: Key, name: bytes, *, creates: bool) -> CommandItem:
        """A key's value for one command."""
        item, default = self._db.get(name), None
        if kind.type_ is not None:
            if item is not None:
                if type(item.value) is not kind.type_:
                    raise SimpleError(msgs.WRONGTYPE_MSG)
            elif creates and kind.type_ is not bytes:
                default = kind.type_()
        return CommandItem(name, self._db, item, default=default)


def _command(buffer: bytes, place: int) -> tuple[list[bytes], int] | None:
    """The command that begins here and where the next one begins; None if it is not complete yet.

    Clients send arrays of bulk strings, and nothing else.
    """
    end = buffer.find(b"\r\n", place)
    if end < 0:
        return None
    assert buffer[place] == 0x2A, f"not a command: {buffer[place:end]!r}"
    fields = []
    count, place = int(buffer[place + 1 : end]), end + 2
    for _ in range(count):
        end = buffer.find(b"\r\n", place)
        if end < 0:
            return None
        begin = end + 2
        place = begin + int(buffer[place + 1 : end]) + 2
        if len(buffer) < place:
            return None
        fields.append(buffer[begin : place - 2])
    return fields, place
