"""Configuration: one typed schema, one precedence, nothing silent.

From weak to strong: defaults, file, environment, Redis (overrides for the whole fleet), command line. Unknown keys and
impossible combinations are refused with the source, the key and the values named; a default is used only where a key
is absent, never where a value is wrong. How sources are read and merged is in ``gateway.config_sources``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from gateway.breaker import BreakerPolicy, HealthPolicy
from gateway.config_secrets import public
from gateway.errors import ConfigError, InvalidSubmission
from gateway.limits import AGING_FIELD, AGING_MAX_S, Limit, aging_ms, encode_limits
from gateway.matching import validate_requires
from gateway.retry import RetryPolicy
from gateway.rollout import RolloutPolicy
from gateway.store.calls import StoreLimits
from gateway.store.keys import QueueKeys

ENV_PREFIX = "GATEWAY_"
ENV_DELIMITER = "__"
#: Share of a lease that must stay as margin: 20 % clock drift broke a 10 % margin in simulation, 5 % did not.
MARGIN_SHARE_MIN = 0.1

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
_WORKER_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


#: A value that may be named by reference; by the time the schema sees it, it is text.
Secret = Annotated[
    SecretStr,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                *(
                    {
                        "type": "object",
                        "properties": {kind: {"type": "string"}},
                        "required": [kind],
                        "additionalProperties": False,
                    }
                    for kind in ("env", "file")
                ),
            ]
        }
    ),
]


class Section(BaseModel):
    """Base of all parts: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class LeaseConfig(Section):
    """Times of a lease. Ownership ends ``margin_s`` before Redis would give the job to somebody else."""

    length_s: Seconds = 15.0
    margin_s: Seconds = 1.5
    renew_s: Seconds = 5.0
    sweep_s: Seconds = 1.0

    @model_validator(mode="after")
    def _combination(self) -> LeaseConfig:
        if self.margin_s < self.length_s * MARGIN_SHARE_MIN and not math.isclose(
            self.margin_s, self.length_s * MARGIN_SHARE_MIN
        ):
            raise ValueError(
                f"margin_s = {self.margin_s:g} is less than {MARGIN_SHARE_MIN:.0%} of length_s = {self.length_s:g}"
            )
        if self.margin_s >= self.length_s:
            raise ValueError(f"margin_s = {self.margin_s:g} must be below length_s = {self.length_s:g}")
        if self.renew_s * 2 >= self.length_s - self.margin_s:
            raise ValueError(
                f"renew_s = {self.renew_s:g} leaves no second try within length_s - margin_s = "
                f"{self.length_s - self.margin_s:g}; at most a third of length_s = {self.length_s:g} is sound"
            )
        return self


class RedisConfig(Section):
    """Time-outs towards Redis."""

    command_timeout_s: Seconds = 3.0
    connect_timeout_s: Seconds = 3.0


# The defaults stand with the parts that use them: the clients take theirs from there without this schema.
_LIMITS, _RETRY, _HEALTH, _BREAKER = StoreLimits(), RetryPolicy(), HealthPolicy(), BreakerPolicy()


class LimitConfig(Section):
    """How much of one service or tenant may happen, fleet-wide; see ``gateway.limits.Limit``."""

    running_max: Annotated[int, Field(ge=0)] | None = None
    rate: Count | None = None
    rate_s: Seconds = 1.0
    burst: Count = 1


class LimitsConfig(Section):
    """Bounds of the queue; see ``gateway.store.calls.StoreLimits``.

    ``services``, ``tenants`` (``"*"``: all other tenants) and ``aging_s`` are kept by the queue itself: a gateway that
    starts defines those that the queue does not have, and changes none.
    """

    unfinished_max: Count = _LIMITS.unfinished_max
    classes_max: Count = _LIMITS.classes_max
    events_max: Count = _LIMITS.events_max
    stream_max: Count = _LIMITS.stream_max
    stream_ttl_s: Seconds = _LIMITS.stream_ttl_s
    retention_s: Seconds = _LIMITS.retention_s
    dead_retention_s: Seconds = _LIMITS.dead_retention_s
    yields_max: Count = _LIMITS.yields_max
    recoveries_max: Count = _LIMITS.recoveries_max
    sweep_max: Count = _LIMITS.sweep_max
    payload_bytes_max: Count = _LIMITS.payload_bytes_max
    result_bytes_max: Count = _LIMITS.result_bytes_max
    worker_ttl_s: Seconds = _LIMITS.worker_ttl_s
    aging_s: Annotated[float, Field(ge=0.001, le=AGING_MAX_S)] | None = None
    services: dict[str, LimitConfig] = Field(default_factory=dict)
    tenants: dict[str, LimitConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _combination(self) -> LimitsConfig:
        try:
            self.queue_limits()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def store_limits(self) -> StoreLimits:
        return StoreLimits(**self.model_dump(exclude={"aging_s", "services", "tenants"}))

    def queue_limits(self) -> list[tuple[str, str]]:
        """What a gateway with these settings defines in a queue that has no such limits yet, as texts by name."""
        aging = [] if self.aging_s is None else [(AGING_FIELD, aging_ms(self.aging_s))]
        return [*aging, *encode_limits(self.named_limits())]

    def named_limits(self) -> dict[str, Limit]:
        """The limits of services and tenants under the names of ``gateway.limits``."""
        named = {f"service {name}": limit for name, limit in self.services.items()}
        named |= {f"tenant {name}": limit for name, limit in self.tenants.items()}
        return {name: Limit(**found.model_dump()) for name, found in named.items()}


class RetryConfig(Section):
    """Bounds of the back-off; see ``gateway.retry.RetryPolicy``."""

    base_s: Seconds = _RETRY.base_s
    delay_max_s: Seconds = _RETRY.delay_max_s
    avoid_s: Annotated[float, Field(ge=0)] = _RETRY.avoid_s
    release_s: Seconds = _RETRY.release_s
    snooze_default_s: Seconds = _RETRY.snooze_default_s
    snooze_max_s: Seconds = _RETRY.snooze_max_s

    def policy(self) -> RetryPolicy:
        return RetryPolicy(**self.model_dump())

    @model_validator(mode="after")
    def _combination(self) -> RetryConfig:
        if self.base_s > self.delay_max_s:
            raise ValueError(f"base_s = {self.base_s:g} is above delay_max_s = {self.delay_max_s:g}")
        if self.snooze_default_s > self.snooze_max_s:
            raise ValueError(
                f"snooze_default_s = {self.snooze_default_s:g} is above snooze_max_s = {self.snooze_max_s:g}"
            )
        return self


class HealthConfig(Section):
    """Probing of a service and its circuit breaker."""

    probe_s: Seconds = 2.0
    probe_timeout_s: Seconds = 2.0
    fail_after: Count = _HEALTH.fail_after
    pass_after: Count = _HEALTH.pass_after
    breaker_faults_max: Count = _BREAKER.faults_max
    breaker_open_s: Seconds = _BREAKER.open_s
    breaker_open_max_s: Seconds = _BREAKER.open_max_s
    capabilities_s: Seconds = 30.0

    def health_policy(self) -> HealthPolicy:
        return HealthPolicy(fail_after=self.fail_after, pass_after=self.pass_after)

    def breaker_policy(self) -> BreakerPolicy:
        return BreakerPolicy(
            faults_max=self.breaker_faults_max, open_s=self.breaker_open_s, open_max_s=self.breaker_open_max_s
        )

    @model_validator(mode="after")
    def _combination(self) -> HealthConfig:
        if self.breaker_open_s > self.breaker_open_max_s:
            raise ValueError(
                f"breaker_open_s = {self.breaker_open_s:g} is above "
                f"breaker_open_max_s = {self.breaker_open_max_s:g}"
            )
        return self


class IntakeConfig(Section):
    """Claim loops. Wake-ups are pushed; the poll is only a net under them."""

    poll_s: Seconds = 1.0
    lag_check_s: Seconds = 0.25


class ShutdownConfig(Section):
    """What happens after the first SIGTERM."""

    grace_s: Annotated[float, Field(ge=0)] = 30.0
    release_s: Seconds = 3.0


class RunnerConfig(Section):
    """One job's run.

    ``stall_s`` is the longest silence of a service before it is asked (the second witness); ``silence_max_s`` the
    longest time without any progress before the attempt counts as timed out, 0 for no such limit.
    """

    stall_s: Seconds = 2.0
    silence_max_s: Annotated[float, Field(ge=0)] = 0.0
    progress_s: Seconds = 0.5
    reconcile_timeout_s: Seconds = 5.0
    cancel_timeout_s: Seconds = 3.0


class TelemetryConfig(Section):
    """Where traces, metrics and logs go; every ``queue_look_s`` the queue's counts are read for the metrics."""

    service_name: str = "trio-gateway"
    otlp_endpoint: str = ""
    console: bool = False
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    log_level: str = "info"
    log_json: bool = False
    queue_look_s: Seconds = 5.0

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        levels = ("debug", "info", "warning", "error")
        if value.lower() not in levels:
            raise ValueError(f"{value!r} is none of {', '.join(levels)}")
        return value.lower()


class ApiConfig(Section):
    """The gateway's own HTTP page with /metrics, /livez and /readyz; port 0 takes a free one, absent means off.

    ``registration`` lets whoever reaches it register services, without a password.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    registration: bool = False


class DiscoveryConfig(Section):
    """How the registry of services is followed; changes are pushed, the poll is only a net under them.

    ``start_wait_s`` is how long a start waits for services to register; ``required`` whether it fails when a worker
    has no endpoint then, or goes on without that worker's jobs.
    """

    poll_s: Seconds = 10.0
    start_wait_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    required: bool = True


class DiscoverConfig(Section):
    """Which registered services a worker takes: predicates over what they say, as a job's ``requires``.

    Without ``all`` exactly one must match; with it the worker owns every one that does.
    """

    match: dict[str, Any] = Field(default_factory=dict)
    all: bool = False

    @field_validator("match")
    @classmethod
    def _match(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            validate_requires(value)
        except InvalidSubmission as error:
            raise ValueError(str(error)) from None
        return value


class PoolConfig(Section):
    """A worker's several endpoints: the largest share of them that may be ejected at once (at least one may)."""

    ejected_share_max: Annotated[float, Field(ge=0, le=1)] = 0.5


_ROLLOUT = RolloutPolicy()


class RolloutConfig(Section):
    """A candidate beside a worker's own connector and endpoint, for a share of its jobs; see ``gateway.rollout``.

    What is not given is as the worker's own: another ``connector`` of the same service, another ``endpoint`` (or a
    pool, ``endpoints``), or other ``options``. It shares the worker's slots.
    """

    connector: str = ""
    endpoint: str = ""
    endpoints: tuple[str, ...] = ()
    options: dict[str, Any] | None = None
    percent: Annotated[float, Field(ge=0, le=100)] = _ROLLOUT.percent
    salt: str = _ROLLOUT.salt
    stopped: Annotated[str, Field(max_length=500)] = _ROLLOUT.stopped
    window_attempts: Count = _ROLLOUT.window_attempts
    window_s: Seconds = _ROLLOUT.window_s
    attempts_min: Count = _ROLLOUT.attempts_min
    failure_ratio_max: Annotated[float, Field(ge=0, le=1)] = _ROLLOUT.failure_ratio_max
    latency_ratio_max: Annotated[float, Field(ge=1, allow_inf_nan=False)] = _ROLLOUT.latency_ratio_max

    @model_validator(mode="after")
    def _combination(self) -> RolloutConfig:
        if self.endpoint and self.endpoints:
            raise ValueError("endpoint and endpoints: give one of them")
        if self.attempts_min > self.window_attempts:
            raise ValueError(
                f"attempts_min = {self.attempts_min} is above window_attempts = {self.window_attempts}, "
                "so that nothing could ever be judged"
            )
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """The candidate's own endpoints; none when it uses the worker's."""
        return self.endpoints or ((self.endpoint,) if self.endpoint else ())

    def policy(self) -> RolloutPolicy:
        return RolloutPolicy(**self.model_dump(exclude={"connector", "endpoint", "endpoints", "options"}))


class WorkerConfig(Section):
    """One claim loop bound to one service instance, or to a pool of them.

    ``connector`` is a key such as ``simulation-http``. Where the instance is, the first of these that there is tells:
    ``endpoint`` (or ``endpoints``, a pool); a live entry of the registry, chosen by ``instance`` and ``discover``;
    ``base_url`` with ``{port}`` standing for ``base_port`` + ``index``. ``instance`` is the expected own name,
    checked against its answers when set. ``slots`` are jobs at once on each endpoint.
    """

    connector: Annotated[str, Field(min_length=1)]
    endpoint: str = ""
    endpoints: tuple[str, ...] = ()
    instance: str = ""
    base_url: str = ""
    base_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    index: Annotated[int, Field(ge=0, le=65535)] = 0
    discover: DiscoverConfig | None = None
    pool: PoolConfig = PoolConfig()
    slots: Annotated[int, Field(ge=1, le=1024)] = 1
    capabilities: dict[str, Any] = Field(default_factory=dict)
    probe_capabilities: bool = False
    options: dict[str, Any] = Field(default_factory=dict)
    rollout: RolloutConfig | None = None

    @model_validator(mode="after")
    def _addresses(self) -> WorkerConfig:
        if self.endpoint and self.endpoints:
            raise ValueError("endpoint and endpoints: give one of them")
        if self.instance and len(self.endpoints) > 1:
            raise ValueError(f"instance = {self.instance!r}: several endpoints cannot have one name")
        if bool(self.base_url) != (self.base_port is not None):
            raise ValueError("base_url and base_port: give both or none")
        if self.base_url and "{port}" not in self.base_url:
            raise ValueError(f"base_url = {self.base_url!r}: must contain {{port}}")
        if self.base_port is not None and self.base_port + self.index > 65535:
            raise ValueError(f"base_port + index = {self.base_port + self.index} is no port")
        return self

    @field_validator("capabilities")
    @classmethod
    def _capabilities(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, capability in value.items():
            items = capability if isinstance(capability, list) else [capability]
            if not all(isinstance(item, str | int | float | bool) for item in items):
                raise ValueError(f"capability {name!r} must be text, number, true/false or a list of these")
        return value


class GatewayConfig(Section):
    """Everything a gateway process needs to know."""

    queue: str = "default"
    redis_url: Secret = SecretStr("")
    data_dir: Path | None = None
    machine: str = ""
    seed: int | None = None
    redis: RedisConfig = RedisConfig()
    lease: LeaseConfig = LeaseConfig()
    limits: LimitsConfig = LimitsConfig()
    retry: RetryConfig = RetryConfig()
    health: HealthConfig = HealthConfig()
    intake: IntakeConfig = IntakeConfig()
    runner: RunnerConfig = RunnerConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    api: ApiConfig = ApiConfig()
    discovery: DiscoveryConfig = DiscoveryConfig()
    workers: dict[str, WorkerConfig] = Field(default_factory=dict)

    @field_validator("queue")
    @classmethod
    def _queue(cls, value: str) -> str:
        try:
            QueueKeys(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text and urlsplit(text).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("expected redis://host:port/db, rediss://… or unix:///path")
        return value

    @field_validator("workers")
    @classmethod
    def _worker_names(cls, value: dict[str, WorkerConfig]) -> dict[str, WorkerConfig]:
        for name in value:
            if not _WORKER_NAME.fullmatch(name):
                raise ValueError(f"worker name {name!r}: use 1 to 64 letters, digits, '.', '-' or '_'")
        return value

    @model_validator(mode="after")
    def _combination(self) -> GatewayConfig:
        belief_s = self.lease.length_s - self.lease.margin_s
        if belief_s < 3 * self.redis.command_timeout_s:
            raise ValueError(
                f"lease.length_s - lease.margin_s = {belief_s:g} must be at least three times "
                f"redis.command_timeout_s = {self.redis.command_timeout_s:g}, or one slow reply loses every lease"
            )
        if self.limits.worker_ttl_s < 3 * self.lease.renew_s:
            raise ValueError(
                f"limits.worker_ttl_s = {self.limits.worker_ttl_s:g} must be at least three times "
                f"lease.renew_s = {self.lease.renew_s:g}"
            )
        return self


def public_values(config: GatewayConfig) -> dict[str, Any]:
    """The merged values as JSON types, for people to see: secrets are hidden."""
    shown = config.model_dump(mode="json") | {"redis_url": config.redis_url.get_secret_value()}
    return {key: public(key, value) for key, value in shown.items()}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **GatewayConfig.model_json_schema()}


def load_config(
    path: Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> GatewayConfig:
    """Read the configuration without the fleet's overrides: defaults, file, ``GATEWAY_…`` variables, ``overrides``.

    Args:
        path: TOML file; None for no file.
        overrides: nested values of the command line, strongest.
        environment: variables; the process's own if None.

    Raises:
        ConfigError: a source cannot be read, a key is unknown, a value or a combination is impossible.
    """
    from gateway.config_sources import Sources  # it needs this module, the schema

    return Sources(path, overrides, environment=environment).load().config
