"""The registry of services and the fleet's overrides: the shipped scripts beside a model, under the virtual clock."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.discovery import current
from gateway.registration import RegisteredService, ServiceEntry
from gateway.store import fleet_scripts
from gateway.store.calls import ScriptCall
from gateway.store.fleet_scripts import ConfigureStatus, Overrides, RegisterStatus, Registration
from gateway.store.keys import QueueKeys
from tests.store.bench import START_US, Backend
from tests.store.contents import Mismatch, as_text, dump

#: One fewer than there are ids, so that walks reach it.
SERVICES_MAX = 3
IDS = ["a", "b", "c", "d"]
URLS = ["http://one:1", "http://two:2"]
TTLS_S = [0.5, 5.0, 60.0]
KEYS = ["limits.unfinished_max", "workers.*.slots"]
VALUES = ["", "1", "2"]
#: A moment, and each time to live to the millisecond: an entry has lapsed at its end, not after it.
STEPS_US = [1, 1_000, 499_000, 500_000, 5_000_000, 60_000_000]
_END = "the walk is over"


@dataclass(frozen=True)
class Register:
    """One call: per service its id, address (None signs off) and time to live in seconds; no id twice."""

    items: tuple[tuple[str, str | None, float], ...]

    def registrations(self) -> list[Registration]:
        return [
            Registration(
                name, None if url is None else ServiceEntry(service="s", url=url, protocol="http"), ttl_s
            )
            for name, url, ttl_s in self.items
        ]


@dataclass(frozen=True)
class Configure:
    """One change of overrides, made from what was read ``behind`` revisions ago."""

    changes: Mapping[str, str]
    behind: int = 0


@dataclass(frozen=True)
class Advance:
    """Time goes on."""

    us: int


@dataclass(frozen=True)
class Replay:
    """An earlier call comes again, byte for byte, counted from the newest."""

    back: int


Operation = Register | Configure | Advance | Replay


class FleetModel:
    """What must be so, in plain Python."""

    def __init__(self) -> None:
        self.now_us = START_US
        self.services: dict[str, tuple[int, int, ServiceEntry]] = {}
        self.overrides = Overrides(0, {})
        self.wakes: list[str] = []
        self.remarks = 0

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    def living(self) -> dict[str, tuple[int, int, ServiceEntry]]:
        """By id: end, since when, entry."""
        return {name: one for name, one in self.services.items() if one[0] > self.now_ms}

    def register(self, items: Sequence[Registration]) -> list[RegisterStatus]:
        living = self.living()
        changed = len(living) < len(self.services)
        statuses = []
        for item in items:
            before = living.get(item.service_id)
            if item.entry is None:
                status = RegisterStatus.GONE
                living.pop(item.service_id, None)
                changed |= before is not None
            elif before is None and len(living) >= SERVICES_MAX:
                status = RegisterStatus.FULL
            else:
                same = before is not None and before[2] == item.entry
                status = RegisterStatus.RENEWED if same else RegisterStatus.REGISTERED
                changed |= not same
                since_ms = before[1] if before is not None and same else self.now_ms
                living[item.service_id] = (self.now_ms + round(item.ttl_s * 1000), since_ms, item.entry)
            statuses.append(status)
        self.services = living
        self.wakes += ["changed services"] * changed
        return statuses

    def configure(self, revision: int, changes: Mapping[str, str]) -> tuple[ConfigureStatus, int]:
        present = self.overrides
        wanted = {key: text for key, text in {**present.values, **changes}.items() if text}
        if wanted == present.values:
            return ConfigureStatus.UNCHANGED, present.revision
        if revision != present.revision:
            return ConfigureStatus.CONFLICT, present.revision
        self.remarks += sum(present.values.get(key, "") != text for key, text in changes.items())
        self.overrides = Overrides(revision + 1, wanted)
        self.wakes.append("changed config")
        return ConfigureStatus.STORED, revision + 1

    def holders(self) -> dict[str, str]:
        """By address the entry that holds: of those that live, the newest."""
        oldest_first = sorted(self.living().items(), key=lambda one: one[0], reverse=True)
        oldest_first.sort(key=lambda one: one[1][1])
        return {entry.url: name for name, (_, _, entry) in oldest_first}


class FleetBench:
    """A queue's registry and overrides on one or two backends; each operation is judged before it returns."""

    def __init__(self, name: str, *backends: Backend) -> None:
        self.backends = backends
        self.keys = QueueKeys(name)
        self.model = FleetModel()
        self.history: list[tuple[ScriptCall, list[Registration] | tuple[int, Mapping[str, str]]]] = []
        #: How often each kind of answer was given, to show that a walk reaches it.
        self.seen: Counter[str] = Counter()
        self._listeners = [backend.client.pubsub() for backend in backends]
        for listener in self._listeners:
            listener.subscribe(self.keys.wake)
            # Whatever is published after the confirmation is heard.
            confirmation = listener.get_message(timeout=5.0)
            if confirmation is None or confirmation["type"] != "subscribe":
                raise Mismatch(f"subscribing was answered by {confirmation}")
        self._set_clock()

    def close(self) -> None:
        for backend, listener in zip(self.backends, self._listeners, strict=True):
            listener.close()
            backend.delete(self.keys)

    def apply(self, operation: Operation) -> None:
        """Do it on every backend and on the model, and look at all that can be read."""
        match operation:
            case Advance(us):
                self.model.now_us += us
                self._set_clock()
            case Register():
                items = operation.registrations()
                call = fleet_scripts.register_call(self.keys, items)
                self._record(replace(call, args=[SERVICES_MAX, *call.args[1:]]), items)
            case Configure(changes, behind):
                revision = self.model.overrides.revision - behind
                call = fleet_scripts.configure_call(self.keys, revision, changes, events_max=1000)
                self._record(call, (revision, changes))
            case Replay(back):
                if self.history:
                    self._do(*self.history[-1 - back % len(self.history)], replayed=True)
        self._look()

    def finish(self) -> None:
        """Whoever follows the queue was told of each change and of nothing else; the backends hold the same."""
        for backend, listener in zip(self.backends, self._listeners, strict=True):
            backend.client.publish(self.keys.wake, _END)
            heard: list[str] = []
            for _ in range(len(self.model.wakes) + 2):
                message = listener.get_message(timeout=5.0)
                heard += [] if message is None else [as_text(message["data"])]
                if heard[-1:] == [_END]:
                    break
            if heard != [*self.model.wakes, _END]:
                raise Mismatch(f"told {heard}, model {self.model.wakes}")
            told = sum(
                as_text(fields[b"e"]).count('"configured"')
                for _, fields in backend.client.xrange(self.keys.events)
            )
            if told != self.model.remarks:
                raise Mismatch(f"{told} remarks in the events, model {self.model.remarks}")
        held = [dump(backend.client, self.keys) for backend in self.backends]
        if any(one != held[0] for one in held):
            raise Mismatch(f"contents differ between backends: {held}")

    def _set_clock(self) -> None:
        for backend in self.backends:
            backend.set_clock(self.keys, self.model.now_us)

    def _record(self, call: ScriptCall, asked: Any) -> None:
        self.history.append((call, asked))
        # Where one found no room, the sign-off of another later in the same call may have made some.
        if "full" not in self._do(call, asked, replayed=False):
            self._repeat(call, asked)

    def _repeat(self, call: ScriptCall, asked: Any) -> None:
        """A repetition at once, as after a lost reply: nothing changes, nobody is told."""
        before = [dump(backend.client, self.keys) for backend in self.backends], list(self.model.wakes)
        self._do(call, asked, replayed=True)
        after = [dump(backend.client, self.keys) for backend in self.backends], list(self.model.wakes)
        if before != after:
            raise Mismatch(f"{call.script.name}{call.args}: a replay changed {before} into {after}")

    def _do(self, call: ScriptCall, asked: Any, *, replayed: bool) -> list[str]:
        raws = [backend.run(call) for backend in self.backends]
        if any(raw != raws[0] for raw in raws):
            raise Mismatch(f"{call.script.name}{call.args}: replies differ between backends: {raws}")
        got: Any
        expected: Any
        if call.script.name == "register":
            got, expected = fleet_scripts.register_reply(raws[0]), self.model.register(asked)
            answers = [status.value for status in got]
            if int(raws[0][0]) != len(self.model.services):
                raise Mismatch(f"register counts {raws[0][0]}, model {self.model.services}")
        else:
            revision = self.model.overrides.revision
            got, expected = fleet_scripts.configure_reply(raws[0]), self.model.configure(*asked)
            answers = [got[0].value]
            if replayed and got[1] != revision:
                raise Mismatch(f"{call.script.name}{call.args}: a replay was taken as a new change")
        if got != expected:
            raise Mismatch(f"{call.script.name}{call.args}: store answers {got}, model {expected}")
        self.seen.update(f"{call.script.name} {answer}" for answer in answers)
        return answers

    def _look(self) -> None:
        model = self.model
        raws = [backend.run(fleet_scripts.discover_call(self.keys)) for backend in self.backends]
        # Redis promises no order within a hash: the replies are equal as sets of entries.
        if any(_entries(raw) != _entries(raws[0]) for raw in raws):
            raise Mismatch(f"discover: replies differ between backends: {raws}")
        now_ms, found = fleet_scripts.discover_reply(raws[0])
        living = [
            RegisteredService(name, entry, ends_ms, since_ms)
            for name, (ends_ms, since_ms, entry) in sorted(model.living().items())
        ]
        if (now_ms, found) != (model.now_ms, living):
            raise Mismatch(f"discover: store shows {found} at {now_ms}, model {living} at {model.now_ms}")
        holders = {service.entry.url: service.id for service in current(found)[0]}
        if holders != model.holders():
            raise Mismatch(f"the newest: {holders} hold, model {model.holders()}")
        for backend in self.backends:
            shown = fleet_scripts.overrides_reply(backend.client.hgetall(self.keys.config))
            if shown != model.overrides:
                raise Mismatch(f"overrides: store holds {shown}, model {model.overrides}")


def _entries(raw: Sequence[Any]) -> tuple[Any, list[Any]]:
    return raw[0], sorted(tuple(raw[at : at + 4]) for at in range(1, len(raw), 4))


def drawn(source: random.Random, count: int) -> list[Operation]:
    """A walk from a seeded source."""
    operations: list[Operation] = []
    for _ in range(count):
        match source.choices(("register", "configure", "advance", "replay"), (5, 3, 4, 2))[0]:
            case "register":
                names = source.sample(IDS, source.randint(1, 3))
                items = [(name, source.choice([*URLS, *URLS, None]), source.choice(TTLS_S)) for name in names]
                operations.append(Register(tuple(items)))
            case "configure":
                keys = source.sample(KEYS, source.randint(1, 2))
                changes = {key: source.choice(VALUES) for key in keys}
                operations.append(Configure(changes, source.choice([0, 0, 0, 1])))
            case "advance":
                operations.append(Advance(source.choice(STEPS_US)))
            case _:
                operations.append(Replay(source.randrange(8)))
    return operations
