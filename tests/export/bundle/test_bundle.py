"""Bundles: what is written, that it can be checked and started, and what is refused."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.errors import EngineError, RecipeError, ResourceError, VerificationError
from tunesmith.export.bundle import Story, write_bundle
from tunesmith.export.bundle import write as writing
from tunesmith.export.bundle.push import push_to_hub, push_to_mlflow
from tunesmith.export.bundle.sending import ready_to_send
from tunesmith.export.bundle.types import Score
from tunesmith.models.artifact import Artifact, Target, hash_files, write_artifact

BASE_SHA = "ab" * 32
STORY = Story(
    "recipes",
    purpose="Find foods | in recipes",
    licence="Apache-2.0",
    licence_id="apache-2.0",
    data={"train": "cd" * 32},
    rows={"train": 490, "test": 140},
    method="lora, rank 8",
    verdict="Ship the tuned model",
    metric="entity_f1",
    scores=(Score("zero_shot", 0.1, 0.05, 0.15, 140), Score("tuned", 0.78, 0.74, 0.82, 140)),
    checks=(("logits", "passed", "largest difference 1e-6"),),
    limits=("Only English was seen.",),
)
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """An export of a kind, with the files given."""

    def made(kind: str, precision: str = "own", *, base: str = "org/base", files: Any = None, **more: Any) -> Path:
        folder = tmp_path / f"export-{kind}"
        folder.mkdir()
        for name, text in (files or {"model.safetensors": "weights"}).items():
            (folder / name).write_text(text)
        hashes, size = hash_files(folder)
        target = Target(kind, precision)  # type: ignore[arg-type]
        settings = {"versions": {"torch": "2.13.0", "Some_Library": "1.0"}, **more}
        write_artifact(Artifact(folder, target, hashes, size, base, BASE_SHA, "auto", None, (2,), 1024, **settings))
        return folder

    return made


def test_a_bundle_holds_the_export_and_all_that_is_told_of_it(make: Make, tmp_path: Path) -> None:
    export = make("merged")
    bundled = write_bundle(export, tmp_path / "bundle", STORY)
    assert bundled.server == "vllm" and {p.name for p in bundled.folder.iterdir()} == {
        "model", "start.sh", "compose.yaml", "README.md", "sbom.cdx.json", "SHA256SUMS"
    }  # fmt: skip
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=bundled.folder, capture_output=True, text=True)
    assert checked.returncode == 0 and "model/artifact.json: OK" in checked.stdout
    card = (bundled.folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and front["base_model"] == "org/base"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.78
    for told in ("Find foods | in recipes", "**Ship the tuned model**", "| **tuned** | 78.0 % | 74.0 % to 82.0 % |",
                 "490 train, 140 test", "Only English was seen.", "| logits | passed |", BASE_SHA):  # fmt: skip
        assert told in card
    assert card.index("| **tuned** |") < card.index("| zero_shot |")


def test_the_bill_of_materials_names_everything_once(make: Make, tmp_path: Path) -> None:
    bundled = write_bundle(make("merged"), tmp_path / "bundle", STORY)
    found = json.loads((bundled.folder / "sbom.cdx.json").read_text())
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    names = {one["bom-ref"]: one for one in found["components"]}
    assert names["pkg:pypi/some-library@1.0"]["version"] == "1.0" and names["data:train"]["type"] == "data"
    assert names["base"]["hashes"] == [{"alg": "SHA-256", "content": BASE_SHA}]
    assert set(found["dependencies"][0]["dependsOn"]) == names.keys()
    subject = found["metadata"]["component"]
    assert [one["name"] for one in subject["components"]] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("kind", "server", "more", "command"),
    [
        ("merged", "vllm", {}, ["vllm", "serve", "./model", "--served-model-name", "recipes"]),
        ("gptq", "vllm", {"precision": "int4"}, ["vllm", "serve", "./model"]),
        ("adapter", "vllm", {"facts": {"rank": 20}},
         ["vllm", "serve", "org/base", "--enable-lora", "--max-lora-rank", "32", "--lora-modules", "recipes=./model"]),
        ("gguf", "llama.cpp", {"files": {"it.gguf": "x"}, "precision": "q8_0"},
         ["llama-server", "--model", "./model/it.gguf", "--alias", "recipes", "--ctx-size", "1024", "--jinja"]),
        ("gguf", "ollama", {"files": {"it.gguf": "x", "Modelfile": "FROM ./it.gguf"}, "precision": "q8_0"},
         ["ollama", "run", "recipes"]),
        ("onnx", "tunesmith", {"precision": "int4"}, ["tunesmith", "serve", "--artifact", "recipes=./model"]),
        ("merged", "tunesmith", {}, ["tunesmith", "serve", "--config", "model.yaml"]),
    ],
)  # fmt: skip
def test_the_script_starts_the_server_with_the_model(
    make: Make, tmp_path: Path, kind: str, server: str, more: dict[str, Any], command: list[str]
) -> None:
    bundled = write_bundle(make(kind, **more), tmp_path / "a bundle", STORY, server)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / command[0]).write_text('#!/bin/sh\nfor one in "$0" "$@"; do echo "$one"; done\n')
    (programs / command[0]).chmod(0o755)
    started = [str(bundled.folder / "start.sh"), "--more", "two words"]
    alone = subprocess.run(started, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert alone.returncode == 127 and "this needs" in alone.stderr
    ran = subprocess.run(started, env={"PATH": f"{programs}:/usr/bin:/bin"}, capture_output=True, text=True)
    told = ran.stdout.splitlines()
    told = told[max(i for i, line in enumerate(told) if line.endswith(f"/{command[0]}")) :]
    assert [command[0], *told[1 : len(command)]] == command and told[-2:] == ["--more", "two words"]
    if (bundled.folder / "compose.yaml").is_file():
        service = yaml.safe_load((bundled.folder / "compose.yaml").read_text())["services"]["model"]
        assert service["ports"][0].startswith("127.0.0.1:") and "./model:/model:ro" in service["volumes"]
        assert any("recipes" in str(one) for one in [*service["command"], *service["volumes"]]) or server == "tunesmith"


def test_an_adapter_on_a_base_of_this_machine_asks_for_it(make: Make, tmp_path: Path) -> None:
    export = make("adapter", base="embedded:base", facts={"rank": 8}, files={"chat_template.jinja": "t", "a": "b"})
    bundled = write_bundle(export, tmp_path / "bundle", STORY)
    script = (bundled.folder / "start.sh").read_text()
    assert "BASE:?" in script and BASE_SHA[:16] in script and "--chat-template ./model/chat_template.jinja" in script
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    ran = subprocess.run([bundled.start], env=environment, capture_output=True, text=True)
    assert ran.returncode != 0 and "name the folder or hub id of the base" in ran.stderr


@pytest.mark.parametrize(
    ("kind", "server", "more", "words"),
    [
        ("openvino", None, {"precision": "fp16"}, "no server that is known here takes openvino"),
        ("onnx", "vllm", {"precision": "int4"}, "vllm cannot serve onnx exports"),
        ("merged", "nginx", {}, "nginx cannot serve"),
        ("adapter", None, {"facts": {"rank": 600}}, "above vLLM's largest"),
        ("gguf", "ollama", {"files": {"it.gguf": "x"}, "precision": "q8_0"}, "no Modelfile"),
        ("gguf", None, {"files": {"a.gguf": "x", "b.gguf": "x"}, "precision": "q8_0"}, "2 GGUF files"),
    ],
)
def test_what_no_server_takes_is_refused(
    make: Make, tmp_path: Path, kind: str, server: str | None, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        write_bundle(make(kind, **more), tmp_path / "bundle", STORY, server)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("base", ["org/$(touch x)", 'org/a"b', "org/a b", "org/`x`"])
def test_a_base_that_a_shell_would_read_is_asked_for(make: Make, tmp_path: Path, base: str) -> None:
    bundled = write_bundle(make("adapter", base=base, facts={"rank": 8}), tmp_path / "bundle", STORY)
    assert base not in (bundled.folder / "start.sh").read_text()


@pytest.mark.parametrize("name", ["$(touch x)", "a b", "", "-x", "a;b", "ü"])
def test_names_that_shells_would_read_are_refused(make: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="cannot be a model's name"):
        write_bundle(make("merged"), tmp_path / "bundle", replace(STORY, name=name))


def test_a_changed_export_an_existing_path_and_a_full_disk_are_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = make("merged")
    with pytest.raises(RecipeError, match="exists already"):
        write_bundle(export, export, STORY)
    with monkeypatch.context() as patched:
        patched.setattr(writing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
        with pytest.raises(ResourceError, match="the disk has 0 MB left"):
            write_bundle(export, tmp_path / "bundle", STORY)
    (export / "model.safetensors").write_text("others")
    with pytest.raises(VerificationError, match=r"changed: model\.safetensors"):
        write_bundle(export, tmp_path / "bundle", STORY)
    assert not (tmp_path / "bundle").exists()


def test_only_what_was_written_is_sent(make: Make, tmp_path: Path) -> None:
    export = make("merged")
    bundled = write_bundle(export, tmp_path / "bundle", STORY)
    assert ready_to_send(bundled.folder).base == ready_to_send(export).base == "org/base"
    (bundled.folder / "README.md").write_text("other")
    (bundled.folder / "new").write_text("x")
    with pytest.raises(VerificationError, match=r"changed: README\.md, new"):
        ready_to_send(bundled.folder)
    with pytest.raises(RecipeError, match="neither a bundle nor an export"):
        ready_to_send(tmp_path)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as an upload of small files needs; keeps what it is sent."""

    asked: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.asked.append((self.path, body))
        if self.path.endswith("/preupload/main"):
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            self.answer({"files": [{**one, "shouldIgnore": False} for one in files]})
        elif "/commit/" in self.path:
            self.answer(
                {
                    "commitUrl": f"http://{self.headers['host']}/org/name/commit/0123",
                    "commitOid": "0123",
                    "success": True,
                }
            )
        else:
            self.answer({"url": f"http://{self.headers['host']}/org/name", "id": "org/name", "name": "org/name"})

    def do_GET(self) -> None:
        self.answer({"id": "org/name", "sha": "0", "siblings": []})

    def answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_bundle_is_uploaded_whole_into_a_private_repository(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_one")
    bundled = write_bundle(make("merged"), tmp_path / "bundle", STORY)
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        pushed = push_to_hub(bundled.folder, "org/name", endpoint=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    assert pushed.version == "0123" and pushed.url.endswith("/org/name")
    created = json.loads(next(body for path, body in Hub.asked if path.endswith("/repos/create")))
    assert created["visibility"] == "private"
    commit = next(body for path, body in Hub.asked if "/commit/" in path).decode().splitlines()
    sent = {one["value"]["path"]: one["value"] for one in map(json.loads, commit) if one["key"] == "file"}
    hashes, _ = hash_files(bundled.folder)
    assert sent.keys() == hashes.keys()
    assert base64.b64decode(sent["model/model.safetensors"]["content"]) == b"weights"


def test_a_hub_that_cannot_be_reached_is_an_error_for_people(make: Make) -> None:
    with pytest.raises(EngineError, match="the hub did not take it"):
        push_to_hub(make("merged"), "org/name", endpoint="http://127.0.0.1:9")
    with pytest.raises(RecipeError, match="is no repository"):
        push_to_hub(Path(), "name")


def test_an_export_becomes_a_version_of_a_registered_model(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    export, registry = make("merged"), f"sqlite:///{tmp_path}/registry.db"
    monkeypatch.chdir(tmp_path)  # where it keeps artifacts
    versions = [push_to_mlflow(export, "recipes", tags={"base": "org/base"}, tracking_uri=registry) for _ in range(2)]
    assert [one.version for one in versions] == ["1", "2"] and versions[1].url == "models:/recipes/2"
    import mlflow

    kept = mlflow.MlflowClient(registry, registry).get_model_version("recipes", "2")
    assert kept.tags["base"] == "org/base"
