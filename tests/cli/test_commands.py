"""Every command: what it asks of the pipeline, what it prints, how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest

from tunesmith.cli.main import COMMANDS, cli, invoke
from tunesmith.data.types import Finding
from tunesmith.recipe import load_recipe, settings
from tunesmith.runs import RunFolder

from .fake_pipeline import FakePipeline


@pytest.mark.parametrize(
    ("command", "through"),
    [("run", "verdict"), ("train", "train"), ("baselines", "baselines"), ("evaluate", "evaluate")],
)
def test_commands_run_the_pipeline_through_their_stage(fake, here, capsys, command, through):
    assert (
        invoke([command, "r.yaml", "--set", "method.rank=8", "--set", "train.max_steps=3", "--out", "d", "--new"]) == 0
    )
    name, asked = fake.calls[0]
    assert (name, asked["through"], asked["out"], asked["new"]) == ("run", through, Path("d"), True)
    assert (asked["recipe"].method.rank, asked["recipe"].train.max_steps) == (8, 3)
    assert asked["recipe"].data.train == str(here / "rows.csv")
    printed = capsys.readouterr()
    assert "ship the tuned model" in printed.out and "Tuned is 50 points better." in printed.out
    assert "75.0 %" in printed.out and "70.0 to 80.0" in printed.out and "macro F1" in printed.out
    assert str(here / "d") in printed.out.replace("\n", "")
    assert "step 4: validation loss 0.6000 · accuracy 50.0 % (best)" in printed.err
    assert "few_shot: 80/80 rows" in printed.err


@pytest.mark.parametrize("command", ["run", "train", "baselines", "evaluate"])
def test_json_is_one_object_and_progress_goes_to_stderr(fake, here, capsys, command):
    assert invoke([command, "r.yaml", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert Path(result["run"]).parent == here / "runs"
    assert result["comparison"][0]["candidate"] == "zero_shot"
    assert "a library prints" in printed.err and "training" in printed.err


def test_check_shows_what_was_found_and_ends_by_it(fake, here, capsys):
    fake.report.findings = (
        Finding("rare_label", "warning", "a label [is] seen once", "add rows", 1, (4,)),
        Finding("empty_answer", "error", "no answer", "fill it", 12, tuple(range(2, 14)), field="tone"),
    )
    assert invoke(["check", "r.yaml"]) == 3
    printed = capsys.readouterr().out
    assert printed.index("empty_answer") < printed.index("rare_label")
    assert "tone: no answer" in printed and "a label [is] seen once" in printed and "4 more" in printed
    assert "<s>ask↵" in printed and "learnt</s>" in printed
    assert "1.5 min" in printed or "90.0 s" in printed
    assert "1.0 GiB" in printed
    assert "LoRA on a base under 50 M parameters" in printed
    fake.report.findings = fake.report.findings[:1]
    assert invoke(["check", "r.yaml"]) == 0


def test_check_takes_bare_data_and_json_and_writes_its_report(fake, here, capsys):
    assert invoke(["check", "rows.csv"]) == 0
    assert fake.calls[-1] == ("check_file", {"path": Path("rows.csv")})
    capsys.readouterr()
    assert invoke(["check", "r.yaml", "--json", "--out", "d"]) == 0
    assert json.loads(capsys.readouterr().out) == {"findings": [], "nan": None}
    assert json.loads((here / "d" / "check.json").read_text()) == {"findings": [], "nan": None}
    assert invoke(["run", "r.yaml", "--out", "d"]) == 0
    assert invoke(["check", "rows.csv", "--set", "train.seed=1"]) == 2


def test_remote_code_runs_only_where_the_command_line_says_so(fake, here, capsys):
    (here / "r.yaml").write_text("data: rows.csv\nbase: {model: org/m, trust_remote_code: true}\n")
    assert invoke(["run", "r.yaml"]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err
    assert not fake.calls
    for said in (["--trust-remote-code"], ["--set", "base.trust_remote_code=true"]):
        assert invoke(["run", "r.yaml", *said]) == 0
        assert fake.calls[-1][1]["recipe"].base.trust_remote_code
        assert "code that comes with org/m will run" in capsys.readouterr().err
    (here / "r.yaml").write_text("data: rows.csv\n")
    assert invoke(["run", "r.yaml"]) == 0
    assert not fake.calls[-1][1]["recipe"].base.trust_remote_code


def test_verdict_of_a_run_by_last_name_and_path(fake, here, capsys):
    run = RunFolder.create(here / "runs", "phrases")
    for name in ("last", run.name, "phrases", str(run.path)):
        assert invoke(["verdict", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["run"] == str(run.path)
    fake.verdict = None
    assert invoke(["verdict", "last"]) == 2
    assert "no verdict yet" in capsys.readouterr().err
    assert invoke(["verdict", "nothing"]) == 2
    elsewhere = RunFolder.create(here / "other", "x")
    fake.verdict = FakePipeline().verdict
    assert invoke(["verdict", "last", "--set", "output.dir=other", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(elsewhere.path)
    assert invoke(["verdict", "last", "--set", "verdict.min_gain=0"]) == 2


def test_chat_once(fake, here, capsys):
    run = RunFolder.create(here / "runs", "phrases")
    assert invoke(["chat", "last", "--message", "hello"]) == 0
    assert capsys.readouterr().out == "tuned heard hello\n"
    assert invoke(["chat", "last", "--message", "hello", "--base", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"run": str(run.path), "model": "base", "message": "hello", "answer": "base heard hello"}
    assert invoke(["chat", "last", "--json"]) == 2


def test_chat_with_tools_shows_calls_and_asks_for_their_results(fake, here, capsys, monkeypatch):
    RunFolder.create(here / "runs", "phrases")
    (here / "tools.json").write_text('[{"type": "function", "function": {"name": "look"}}]')
    asked = ["chat", "last", "--tools", "tools.json"]
    assert invoke([*asked, "--message", "hello"]) == 0
    assert capsys.readouterr().out == 'calls look {"at": 1}\n'
    assert invoke([*asked, "--message", "hello", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answer"] == "" and said["tool_calls"] == [{"id": "call_1", "name": "look", "arguments": '{"at": 1}'}]
    typed = iter(["where?", "over there", "/quit"])
    prompts: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt: (prompts.append(prompt), next(typed))[1])
    assert invoke(asked) == 0
    assert capsys.readouterr().out.splitlines() == ['calls look {"at": 1}', "tuned heard where?, , over there"]
    assert prompts == ["> ", "result of look> ", "> "]
    (here / "tools.json").write_text('{"type": "function"}')
    assert invoke([*asked, "--message", "hello"]) == 3
    assert "tool 1 has no name" in capsys.readouterr().err


def test_chat_keeps_the_conversation_until_told_to_forget_it(fake, here, capsys, monkeypatch):
    RunFolder.create(here / "runs", "phrases")
    said = iter(["one", "", "two", "/nonsense", "/new", "three", "/quit", "never"])
    monkeypatch.setattr("builtins.input", lambda _: next(said))
    assert invoke(["chat", "last"]) == 0
    heard = capsys.readouterr()
    assert heard.out.splitlines() == [
        "tuned heard one",
        "tuned heard one, tuned heard one, two",
        "tuned heard three",
    ]
    assert "/nonsense" in heard.err
    assert next(said) == "never"


@pytest.mark.parametrize("ends", [EOFError, KeyboardInterrupt])
def test_chat_ends_quietly(fake, here, monkeypatch, ends):
    RunFolder.create(here / "runs", "phrases")

    def stop(_: str) -> str:
        raise ends

    monkeypatch.setattr("builtins.input", stop)
    assert invoke(["chat", "last"]) == 0


def test_runs_lists_them_newest_first(here, capsys):
    assert invoke(["runs"]) == 0
    assert "no runs" in capsys.readouterr().out
    first, second = RunFolder.create(here / "runs", "a"), RunFolder.create(here / "runs", "b")
    first.set_status("finished", verdict="Ship tuned: [bold] +11 points")
    second.set_status("failed", error="disk full")
    assert invoke(["runs"]) == 0
    printed = capsys.readouterr().out
    assert printed.index(second.name) < printed.index(first.name)
    assert "[bold] +11" in printed and "failed" in printed and "disk full" in printed
    assert invoke(["runs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["runs"]
    assert [run["name"] for run in listed] == [second.name, first.name]
    assert listed[1]["verdict"] == "Ship tuned: [bold] +11 points"


@pytest.fixture
def phrases(here) -> Path:
    rows = [f'"{word} {number}",{tone}' for tone, word in (("warm", "thanks"), ("cold", "no")) for number in range(20)]
    (here / "phrases.csv").write_text("phrase,tone\n" + "\n".join(rows) + "\n")
    return here / "phrases.csv"


def test_init_writes_a_commented_recipe_that_loads(phrases, here, capsys):
    assert invoke(["init", "phrases.csv", "--out", "sub/new.yaml", "--set", "method.rank=4", "--yes"]) == 0
    assert "40 rows" in capsys.readouterr().out
    text = (here / "sub" / "new.yaml").read_text()
    assert "  # Rank of the LoRA matrices.\n  rank: 4\n" in text
    recipe = load_recipe(here / "sub" / "new.yaml")
    assert recipe.data.train == str(phrases)
    assert (recipe.name, recipe.task.type, recipe.method.rank) == ("phrases", "classification", 4)


def test_init_never_overwrites_and_checks_what_is_set(phrases, here, capsys):
    assert invoke(["init", "phrases.csv", "--out", "r.yaml", "--yes"]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert (here / "r.yaml").read_text().startswith("name: phrases")
    assert invoke(["init", "phrases.csv", "--out", "n.yaml", "--set", "train.epoch=1"]) == 2
    assert "did you mean train.epochs?" in capsys.readouterr().err
    assert not (here / "n.yaml").exists()


def test_init_json(phrases, here, capsys):
    assert invoke(["init", "phrases.csv", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == 40 and told["recipe"] == "recipe.yaml" and told["reasons"]
    assert (here / "recipe.yaml").read_text() == told["text"]


def test_init_asks_on_a_terminal(phrases, here, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert invoke(["init", "phrases.csv"]) == 130
    assert not (here / "recipe.yaml").exists()
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "y")
    assert invoke(["init", "phrases.csv"]) == 0
    assert (here / "recipe.yaml").exists()


def test_schema_and_docs(capsys):
    assert invoke(["recipe", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Tunesmith recipe"
    assert invoke(["recipe", "docs"]) == 0
    assert "| `train.max_steps` |" in capsys.readouterr().out
    assert invoke(["recipe", "docs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train.max_steps"]["type"] == "integer, at least 1"


def test_help_comes_from_the_recipe(capsys):
    assert invoke(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(setting.key in shown for setting in settings() if setting.key.split(".")[0] not in ("name", "search"))
    assert invoke(["search", "--help"]) == 0
    shown_by_search = capsys.readouterr().out
    assert all(setting.key in shown_by_search for setting in settings(["search", "train"]))
    assert invoke(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "train.learning_rate" in shown and "verdict.min_gain" not in shown


def test_every_command_loads_and_its_line_of_help_is_in_the_group(capsys):
    assert invoke(["--help"]) == 0
    listing = capsys.readouterr().out
    context = cli.make_context("tunesmith", ["runs"])
    for name, (_, text) in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None and command.name == name
        assert f"{name} " in listing and text[:40] in listing
        if not isinstance(command, click.Group):
            options = {option for parameter in command.params for option in parameter.opts}
            # `worker` has nothing to print.
            assert ("--json" in options) or name == "worker"
            # `benchmark` asks an endpoint that is named by its address, a server has settings of its own, and an export
            # is finished: there is no recipe whose settings could change.
            assert ("--set" in options) == (name not in ("benchmark", "serve", "worker", "env", "bundle", "push"))
