"""docs/services.md is true: one table per service, equal to what its connectors declare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config import load_config
from gateway.connectors.registry import BUILTIN_KEYS
from tests.connectors.services_page import services, table

#: What the page's references name.
SECRETS = {"LLM_KEY": "a-key", "WEBUI_AUTH": "user:password"}
PAGE = Path(__file__).parents[2] / "docs" / "services.md"


@pytest.mark.parametrize("service", services())
def test_the_table_of_a_service_is_what_its_connectors_declare(service: str) -> None:
    """What they can do, what follows for a job, and their options stand in the page."""
    found = [part for part in PAGE.read_text("utf-8").split("\n\n") if part.startswith("| | `")]
    assert table(service).rstrip() in [part.rstrip() for part in found]


def test_every_configuration_of_the_page_is_accepted(tmp_path: Path) -> None:
    """What can be copied from the page is a configuration; together the examples use every connector."""
    used = set()
    for number, text in enumerate(re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)):
        file = tmp_path / f"{number}.toml"
        file.write_text(text, "utf-8")
        workers = load_config(file, environment=SECRETS).workers
        used |= {worker.connector for worker in workers.values()}
    assert used >= set(BUILTIN_KEYS)
