"""Dockerfile and compose file: what can be said of them without building them.

The image itself is not built here: what the files name exists, and the commands in them are real ones.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tunesmith.cli.main import cli

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Name and arguments of every instruction of the Dockerfile."""
    text = re.sub(r"\\\n\s*", " ", (PROJECT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PROJECT / "compose.yaml").read_text())
    return found


def all_of(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for found, rest in instructions if found == name]


def test_what_is_copied_exists_and_is_not_ignored(instructions: list[tuple[str, str]]) -> None:
    ignored = (PROJECT / ".dockerignore").read_text().split()
    for copied in all_of(instructions, "COPY"):
        for source in copied.split()[:-1]:
            assert (PROJECT / source).exists(), source
            assert ignored[0] == "*" and f"!{source}" in ignored


def test_it_installs_the_extras_that_exist(instructions: list[tuple[str, str]]) -> None:
    runs = " ".join(all_of(instructions, "RUN"))
    extras = re.search(r"\.\[([a-z,]+)\]", runs)
    assert extras is not None
    declared = (PROJECT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in declared for extra in extras[1].split(","))
    assert {"serve", "onnx"} <= set(extras[1].split(","))  # exported models are answered too
    [python] = all_of(instructions, "FROM")
    assert python == "python:3.11-slim"


def test_it_runs_a_real_command_as_nobody_special(instructions: list[tuple[str, str]]) -> None:
    assert all_of(instructions, "USER") == ["tunesmith"]
    names = [name for name, _ in instructions]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    [entry], [arguments] = all_of(instructions, "ENTRYPOINT"), all_of(instructions, "CMD")
    assert json.loads(entry) == ["tunesmith"]
    name, *flags = json.loads(arguments)
    with click.Context(cli) as context:
        command = cli.get_command(context, name)
        assert command is not None
        parsed = command.make_context(name, flags, parent=context).params
    assert (parsed["host"], parsed["port"], parsed["log"]) == ("0.0.0.0", 8000, "-")


def test_the_health_check_is_python_and_asks_what_exists(instructions: list[tuple[str, str]]) -> None:
    [check] = all_of(instructions, "HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "health check", "exec")
    assert "http://127.0.0.1:8000/readyz" in command[2]


def test_the_server_is_reachable_from_this_machine_only_and_its_data_are_kept(compose: dict[str, Any]) -> None:
    server, database = compose["services"]["server"], compose["services"]["database"]
    assert server["ports"] == ["127.0.0.1:8000:8000"]
    assert "ports" not in database
    assert server["cap_drop"] == ["ALL"] and server["security_opt"] == ["no-new-privileges:true"]
    volumes = {mount.split(":")[0] for service in (server, database) for mount in service["volumes"]}
    assert volumes == set(compose["volumes"])
    assert server["volumes"] == ["home:/data"]


def test_the_password_is_asked_for_and_stands_nowhere(compose: dict[str, Any]) -> None:
    database, server = (compose["services"][name]["environment"] for name in ("database", "server"))
    assert database["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    url = server["TUNESMITH_DATABASE"]
    assert "${POSTGRES_PASSWORD:?}" in url
    assert url.startswith("postgresql+psycopg://tunesmith:") and url.endswith("@database:5432/tunesmith")
    assert compose["services"]["server"]["depends_on"] == {"database": {"condition": "service_healthy"}}


def test_the_lines_to_start_with_are_real_commands() -> None:
    for file in ("compose.yaml", "Dockerfile"):
        text = (PROJECT / file).read_text()
        found = re.search(r"keys create \w+", text)
        assert found is not None
        with click.Context(cli) as context:
            group = cli.get_command(context, "keys")
            assert isinstance(group, click.Group)
            assert group.get_command(context, "create") is not None
