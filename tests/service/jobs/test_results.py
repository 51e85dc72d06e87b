from __future__ import annotations

import base64

from tests.service.jobs.made import a_job
from tunesmith.service.jobs.events import Translator
from tunesmith.service.jobs.results import encoded, results_csv, results_name, results_of
from tunesmith.service.store.nouns import Event

STEPS = [
    {"step": 1, "total_steps": 2, "train_loss": 1.5, "train_mean_token_accuracy": 0.25},
    {
        "step": 2,
        "total_steps": 2,
        "train_loss": 0.123456789,
        "train_mean_token_accuracy": 1.0,
        "valid_loss": 0.5,
        "valid_mean_token_accuracy": 0.75,
        "full_valid_loss": 0.625,
        "full_valid_mean_token_accuracy": 0.5,
    },
]


def test_openais_file() -> None:
    assert results_csv(STEPS, "openai").decode() == (
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n"
        "1,1.50000,0.25000,,\n"
        "2,0.12346,1.00000,0.50000,0.75000\n"
    )
    assert results_name("openai") == "step_metrics.csv"


def test_azures_file() -> None:
    assert results_csv(STEPS, "azure").decode() == (
        "step,train_loss,train_mean_token_accuracy,valid_loss,validation_mean_token_accuracy,full_valid_loss,"
        "full_valid_mean_token_accuracy\n"
        "1,1.50000,0.25000,,,,\n"
        "2,0.12346,1.00000,0.50000,0.75000,0.62500,0.50000\n"
    )
    assert results_name("azure") == "results.csv"


def test_the_file_is_made_of_the_events_alone() -> None:
    translator = Translator(steps_per_epoch=None)
    drafts = [
        draft
        for step in (1, 2, 3)
        for draft in translator.hear({"kind": "train_step", "step": step, "steps": 3, "loss": step / 8})
    ]
    events = [Event(f"e{n}", 1, "j", n, "info", "hello") for n in (1, 2)]
    events += [Event(f"s{n}", 1, "j", n, message=d.message, **d.fields()) for n, d in enumerate(drafts, 3)]
    assert results_of(events, "openai").decode().splitlines()[1:] == ["1,0.12500,,,", "2,0.25000,,,", "3,0.37500,,,"]


def test_base64_where_it_is_wanted() -> None:
    chat, completion = a_job(rows="chat"), a_job(rows="completion")
    assert encoded(b"step\n", chat, "plain") == encoded(b"step\n", completion, "auto") == b"step\n"
    for job, wanted in ((chat, "base64"), (chat, "auto"), (completion, "base64")):
        assert base64.b64decode(encoded(b"step\n", job, wanted)) == b"step\n"
    assert encoded(b"step\n", a_job(rows="chat", flavour="azure"), "base64") == b"step\n"
