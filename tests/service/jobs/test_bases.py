"""Going on from a tuned model: the job begins with exactly that model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.service.jobs.made import a_job
from tests.tiny import build, byte_tokenizer
from tunesmith.errors import ResourceError
from tunesmith.models.load import load_base
from tunesmith.models.lora import trainable_parameters
from tunesmith.models.methods import attach, load_tuned
from tunesmith.recipe.schema import Base, Method
from tunesmith.service.context import Service
from tunesmith.service.jobs.bases import adapter_facts, parameters_of, starting_base
from tunesmith.service.jobs.names import new_checkpoint_name, new_tuned_name, root_of
from tunesmith.service.store.nouns import Job, Model

PROMPT = torch.tensor([[5, 17, 9, 200, 33]])
NAME = "ft:gpt-4o-mini-2024-07-18:tunesmith::abcdefgh"


def a_tuned_model(service: Service) -> Model:
    """A base of random weights and an adapter that changes its answers."""
    folder = service.settings.home / "base"
    build("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    base = load_base(Base(model=str(folder)))
    tuning = attach(base, Method(rank=4), 0, None)
    with torch.no_grad():
        for number, parameter in enumerate(trainable_parameters(base.model).values()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.2)
    adapter = service.settings.home / "models" / "one"
    adapter.mkdir(parents=True)
    tuning.save(adapter, base)
    model = Model(NAME, 1, "o", "tuned", str(folder), "models/one")
    service.store.add(model)
    return model


def going_on(model: Model) -> Job:
    return a_job(model=model.id, base=model.base, extra={"starts_from": model.id})


@torch.no_grad()
def test_the_merged_base_answers_as_the_tuned_model(service: Service) -> None:
    model = a_tuned_model(service)
    merged = starting_base(going_on(model), service.store, service.settings)
    assert Path(merged).parent == service.settings.home / "models" / "merged"
    tuned = load_base(Base(model=model.base))
    plain = tuned.model(PROMPT).logits
    load_tuned(tuned, service.settings.home / str(model.adapter), Method())
    expected = tuned.model(PROMPT).logits
    found = load_base(Base(model=merged)).model(PROMPT).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2), "else the adapter changes nothing"


def test_it_is_merged_once_and_shared(service: Service) -> None:
    model = a_tuned_model(service)
    first = starting_base(going_on(model), service.store, service.settings)
    written = (Path(first) / "config.json").stat().st_mtime_ns
    assert starting_base(going_on(model), service.store, service.settings) == first
    assert (Path(first) / "config.json").stat().st_mtime_ns == written


def test_a_job_on_a_base_begins_with_the_base(service: Service) -> None:
    assert starting_base(a_job(), service.store, service.settings) == "embedded:base"


def test_a_model_that_is_gone(service: Service) -> None:
    model = a_tuned_model(service)
    service.store.remove(Model, model.id)
    with pytest.raises(ResourceError, match="was deleted"):
        starting_base(going_on(model), service.store, service.settings)
    service.store.add(Model(NAME, 1, "o", "tuned", "embedded:base", "models/nowhere"))
    with pytest.raises(ResourceError, match="not there any more"):
        starting_base(going_on(model), service.store, service.settings)


def test_what_is_told_of_bases_and_adapters(service: Service) -> None:
    model = a_tuned_model(service)
    facts = adapter_facts(service.settings.home / str(model.adapter))
    assert (facts["rank"], facts["alpha"]) == (4, 8)
    assert "q_proj" in facts["target_modules"]
    assert parameters_of(model.base) == sum(p.numel() for p in build("llama").parameters())
    assert parameters_of("embedded:base") > 1_000_000


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18"),
        (NAME, "gpt-4o-mini-2024-07-18"),
        ("ft:gpt-4o-mini-2024-07-18:o:recipe-ner:abcdefgh:ckpt-step-101", "gpt-4o-mini-2024-07-18"),
        ("ft:embedded:base:o::abcdefgh", "embedded:base"),
        ("ft:org/model:o::abcdefgh", "org/model"),
        ("gpt-4o-mini-2024-07-18.ft-0e208cf33a6a466994aff31a08aba678", "gpt-4o-mini-2024-07-18"),
        ("gpt-4o-mini-2024-07-18.ft-0e208cf33a6a466994aff31a08aba678-mine:ckpt-step-90", "gpt-4o-mini-2024-07-18"),
        ("my.ft-model", "my.ft-model"),
    ],
)
def test_names_go_back_to_their_root(name: str, root: str) -> None:
    assert root_of(name) == root


def test_new_names() -> None:
    job = a_job(model=NAME, suffix="Recipe NER!")
    named = new_tuned_name(job)
    assert named.rpartition(":")[0] == "ft:gpt-4o-mini-2024-07-18:tunesmith:recipe-ner"
    assert len(named.rpartition(":")[2]) == 8
    assert new_tuned_name(job) != named
    checkpoint = new_checkpoint_name(a_job(fine_tuned_model=named), 90)
    assert checkpoint.endswith(":ckpt-step-90") and not checkpoint.startswith(named)
    azure = a_job(model="gpt-4o-mini-2024-07-18", suffix="mine", flavour="azure")
    name = new_tuned_name(azure)
    assert name.startswith("gpt-4o-mini-2024-07-18.ft-") and name.endswith("-mine") and root_of(name) == azure.model
    assert new_checkpoint_name(a_job(flavour="azure", fine_tuned_model=name), 90) == f"{name}:ckpt-step-90"
