"""The replaced system's settings: what is known is translated, what is not is refused with file, key and value."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.config import GatewayConfig
from gateway.config_import import import_settings, parse_workers
from gateway.errors import ConfigError

MAPPING: dict[str, Any] = {
    "workers": {
        "comfyui": {
            "services": ["comfyui"],
            "is_gpu_bound": True,
            "job_service_required_map": [{"job_service_required": "comfyui", "worker_service": "comfyui"}],
        },
        "simulation-websocket": {
            "services": ["simulation-websocket"],
            "job_service_required_map": [
                {"job_service_required": "sim-ws", "worker_service": "simulation-websocket"}
            ],
        },
        "openai": {"services": ["openai-responses"], "required_env": ["OPENAI_API_KEY"]},
    },
    "services": {
        "comfyui": {
            "connector": "ComfyUIWebSocketConnector",
            "type": "pm2_service",
            "installer": "ComfyUIInstaller",
            "ports": ["${COMFYUI_PORT:-8188}"],
            "port_increment": 10,
        },
        "simulation-websocket": {
            "connector": "SimulationWebsocketConnector",
            "ports": 8399,
            "installer": None,
        },
        "openai-responses": {
            "connector": "OpenAIResponsesConnector",
            "type": "external_api",
            "required_env": ["OPENAI_API_KEY", "OPENAI_ORG"],
            "api_config": {"base_url": "https://api.openai.com"},
        },
    },
    "connectors": {"ComfyUIWebSocketConnector": {"path": "./comfyui.js", "description": "x"}},
}


def imported(tmp_path: Path, mapping: Any, workers: str | None) -> Any:
    path = tmp_path / "service-mapping.json"
    path.write_text(json.dumps(mapping))
    return import_settings(path, workers)


def test_workers_variable() -> None:
    """Types and counts become workers with the ports that the replaced system used."""
    settings = tomllib.loads(import_settings(None, "comfyui:2, simulation:1").toml())
    assert {
        name: (worker["connector"], worker["endpoint"]) for name, worker in settings["workers"].items()
    } == {
        "comfyui-0": ("comfyui-websocket", "http://localhost:8188"),
        "comfyui-1": ("comfyui-websocket", "http://localhost:8189"),
        "simulation-0": ("simulation-http", "http://localhost:8299"),
    }
    GatewayConfig.model_validate(settings)


def test_service_mapping(tmp_path: Path) -> None:
    """Ports, increments, external addresses and keys are translated; what a person must decide is remarked on."""
    result = imported(tmp_path, MAPPING, "comfyui:2,openai:1,simulation-websocket:2")
    workers = tomllib.loads(result.toml())["workers"]
    assert [workers[name]["endpoint"] for name in workers] == [
        *("http://localhost:8188", "http://localhost:8198", "https://api.openai.com"),
        *("http://localhost:8399", "http://localhost:8400"),
    ]
    assert workers["openai-0"]["options"] == {"api_key": {"env": "OPENAI_API_KEY"}}
    GatewayConfig.model_validate({"workers": workers})
    text = "\n".join(result.remarks)
    for fragment in ("'8188' of COMFYUI_PORT", "OPENAI_ORG", "'sim-ws'", "port_increment is 0"):
        assert fragment in text
    one_each = imported(tmp_path, MAPPING, None)
    assert set(one_each.settings["workers"]) == {"comfyui-0", "openai-0", "simulation-websocket-0"}
    assert any("one worker of each type" in remark for remark in one_each.remarks)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "''"),
        ("comfyui", "'comfyui'"),
        ("comfyui:auto", "comfyui:auto"),
        ("comfyui:0", "'comfyui:0'"),
        ("comfyui:-1", "'comfyui:-1'"),
        ("comfyui:9999", "'comfyui:9999'"),
        ("comfyui:1,comfyui:2", "given twice"),
        ("com fyui:1", "'com fyui:1'"),
    ],
)
def test_wrong_workers_variable(text: str, fragment: str) -> None:
    """Each mistake names the variable and the part."""
    with pytest.raises(ConfigError, match="WORKERS") as caught:
        parse_workers(text)
    assert fragment in str(caught.value)


def changed(path: str, value: Any) -> Any:
    copy = json.loads(json.dumps(MAPPING))
    *parents, last = path.split("/")
    place = copy
    for part in parents:
        place = place[part]
    place[last] = value
    return copy


@pytest.mark.parametrize(
    ("mapping", "fragments"),
    [
        ([], ["document", "expected an object", "[]"]),
        (changed("extra", 1), ["extra: unknown", "value 1"]),
        (changed("workers/comfyui/gpu", 1), ["workers.comfyui.gpu: unknown", "value 1"]),
        (changed("workers/comfyui/services", "comfyui"), ["workers.comfyui.services", '"comfyui"']),
        (changed("workers/comfyui/services", ["gone"]), ["services.gone", "there is none"]),
        (
            changed("services/comfyui/connector", "Mystery"),
            ["services.comfyui.connector: unknown", '"Mystery"'],
        ),
        (changed("services/comfyui/ports", "many"), ["services.comfyui.ports", '"many"']),
        (changed("services/comfyui/ports", ["${PORT}"]), ["services.comfyui.ports", "PORT has no default"]),
        (changed("services/comfyui/port_increment", -1), ["services.comfyui.port_increment", "value -1"]),
        (changed("services/comfyui/colour", "red"), ["services.comfyui.colour: unknown", '"red"']),
        (
            changed("services/openai-responses/api_config", {}),
            ["services.openai-responses.api_config.base_url"],
        ),
        (
            changed("workers/comfyui/job_service_required_map", {}),
            ["job_service_required_map", "expected a list"],
        ),
    ],
)
def test_unknown_shapes_are_refused(tmp_path: Path, mapping: Any, fragments: list[str]) -> None:
    """Nothing is guessed: file, key and value are named."""
    with pytest.raises(ConfigError) as caught:
        imported(tmp_path, mapping, None)
    wanted = [*fragments, "service-mapping.json"]
    assert [fragment for fragment in wanted if fragment not in str(caught.value)] == []


def test_workers_must_be_in_the_mapping(tmp_path: Path) -> None:
    """The replaced system skipped a type that no longer existed; here it is an error."""
    with pytest.raises(ConfigError, match="type 'simulation': not among the workers"):
        imported(tmp_path, MAPPING, "simulation:1")
    with pytest.raises(ConfigError, match="type 'ollama': unknown"):
        import_settings(None, "ollama:1")
    with pytest.raises(ConfigError, match="give a service-mapping"):
        import_settings(None, None)
    with pytest.raises(ConfigError, match="cannot be read"):
        import_settings(tmp_path / "missing.json", None)
