"""Requests that share steps answer as each does alone: bases, adapters of all kinds, models of many families."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.inference.serving.asking import (
    GREEDY,
    adapter_folder,
    answers,
    base_folder,
    conversation,
    plain_engine,
    serve,
    told,
)
from tests.inference.test_abilities import UNUSUAL, made
from tests.inference.test_torch_engine import prompts, reference
from tests.tiny import FAMILIES, build, byte_tokenizer
from tunesmith.errors import EngineError, TunesmithError
from tunesmith.inference.serving import adapters, scheduler, stream_layers
from tunesmith.inference.serving.adapters import Current, batchable, wrap_linears
from tunesmith.inference.serving.runner import FlatRunner, Part, RowRunner, best_runner
from tunesmith.inference.serving.stream_layers import StreamLayer
from tunesmith.inference.serving.torch_serving import TorchLimits, TorchServing
from tunesmith.inference.serving.types import Ask, ModelRef
from tunesmith.models.load import load_base
from tunesmith.models.methods import attach
from tunesmith.recipe.schema import Base, Method
from tunesmith.text.render import Renderer

NEW = 12


def refs(folder: Path, family: str) -> list[ModelRef]:
    """A base, and adapters on it that differ in rank, targets, scaling and kind."""
    base = base_folder(folder / "base", family)
    kinds: list[dict[str, Any]] = [
        {"rank": 2},
        {"rank": 7, "alpha": 3.0, "use_rslora": True, "target_modules": "all-linear"},
        {"rank": 3, "use_dora": True},
    ]
    made = [adapter_folder(folder / f"adapter{i}", base, i, **kind) for i, kind in enumerate(kinds)]
    return [ModelRef(str(base), adapter, "raw") for adapter in (None, *made)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_adapters_answers_as_each_alone(family: str, tmp_path: Path) -> None:
    asked = prompts()
    models = refs(tmp_path, family)
    expected = {(ref, i): one.text for ref in models for i, one in enumerate(plain_engine(ref).generate(asked, NEW))}
    asks = [(ref, i, Ask(ref, tuple(asked[i]), NEW, GREEDY)) for i in range(len(asked)) for ref in models]

    async def work(engine: TorchServing) -> tuple[list[str], list[str], Any]:
        only = [ask for _, _, ask in asks]
        together = await answers(engine, only)
        joining = await answers(engine, only[::3], stagger=0.003)
        return together, joining, engine.state()

    together, joining, state = serve(work)
    said = {(ref, i): text for (ref, i, _), text in zip(asks, together, strict=True)}
    assert said == expected
    assert joining == together[::3]
    assert state["adapters_resident"] == 3 and state["models_resident"] == 1 and state["requests_failed"] == 0
    assert state["steps"] < state["answer_tokens"] / 3, "rows did not share steps"
    assert len({tuple(expected[ref, i] for i in range(len(asked))) for ref in models}) == len(models)


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
def test_adapters_on_any_layer_answer_prompts_that_are_read_in_parts(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most parts of a prompt want no logits; the head, which may be adapted too, is then given a token of nobody."""
    model = build(family)
    base = base_folder(tmp_path / "base", model=model)
    linears = wrap_linears(model, Current())
    names = sorted({path.rsplit(".", 1)[-1] for path in linears} | {"lm_head"})
    chosen: list[Any] = [*([name] for name in names), names]
    made = [adapter_folder(tmp_path / f"a{i}", base, i, target_modules=one) for i, one in enumerate(chosen)]
    models = [ModelRef(str(base), folder, "raw") for folder in (None, *made)]
    asked = [conversation(text) for text in ("a long prompt that is read in parts " * 4, "a short one")]
    expected = [[one.text for one in plain_engine(ref).generate(asked, NEW)] for ref in models]
    monkeypatch.setattr(scheduler, "_LARGEST_CHUNK", 48)
    monkeypatch.setattr(scheduler, "_FIRST_CHUNK", 48)
    asks = [Ask(ref, prompt, NEW, GREEDY) for ref in models for prompt in asked]

    async def work(engine: TorchServing) -> Any:
        alone = [(await answers(engine, [ask]))[0] for ask in asks[:4]]
        for ref in models:
            engine.forget(ref)  # so that the long prompts are read again
        return alone, await answers(engine, asks), engine.state()["models_resident"]

    alone, together, resident = serve(work)
    flat = [text for one in expected for text in one]
    assert together == flat and alone == flat[:4] and resident == 1
    assert len(set(flat)) > len(models) // 2


def test_a_tuned_head_is_asked_with_a_prompt_of_many_parts(tmp_path: Path) -> None:
    """As long as real prompts with tools are, and read as it is outside of tests."""
    model = build("llama")
    model.config.max_position_embeddings = 2048
    base = base_folder(tmp_path / "base", model=model)
    tuned = ModelRef(str(base), adapter_folder(tmp_path / "a", base, 1, target_modules=["q_proj", "lm_head"]), "raw")
    asked = [conversation("x1 " * 400)]
    expected = [one.text for one in plain_engine(tuned).generate(asked, NEW)]
    asks = [Ask(ref, asked[0], NEW, GREEDY) for ref in (tuned, ModelRef(str(base), None, "raw"))]
    found = serve(lambda engine: answers(engine, asks))
    assert found[:1] == expected and found[1] != found[0]


def test_the_embedded_base_with_adapters_answers_as_each_alone(tmp_path: Path) -> None:
    name = "embedded:base"
    folders = [adapter_folder(tmp_path / f"a{i}", name, i, scale=0.2, rank=4 + 4 * i) for i in range(2)]
    models = [ModelRef(name), *(ModelRef(name, folder) for folder in folders)]
    asked = [conversation(text) for text in ("What is the capital of France?", "Tell me about cats. " * 6, "Hi")]
    expected = [[one.text for one in plain_engine(ref).generate(asked, 16)] for ref in models]
    asks = [Ask(ref, prompt, 16, GREEDY) for ref in models for prompt in asked]
    found = serve(lambda engine: answers(engine, asks, stagger=0.004))
    assert found == [text for one in expected for text in one]
    assert len({tuple(one) for one in expected}) == 3


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_answer_as_transformers_has_them_answer(name: str, tmp_path: Path) -> None:
    model = made(name)
    base = base_folder(tmp_path / "base", model=model)
    adapter = adapter_folder(tmp_path / "adapter", base, 1)
    plain, tuned = ModelRef(str(base), None, "raw"), ModelRef(str(base), adapter, "raw")
    asked = prompts(lengths=(3, 90, 17, 33))
    renderer = Renderer(byte_tokenizer(), "raw")
    expected = [renderer.decode(reference(model, p, renderer)) for p in asked]
    expected += [one.text for one in plain_engine(tuned).generate(asked, NEW)]
    asks = [Ask(ref, tuple(p), NEW, GREEDY) for ref in (plain, tuned) for p in asked]
    assert serve(lambda engine: answers(engine, asks)) == expected


def test_what_a_model_remembers_decides_how_it_is_run() -> None:
    def runner(model: Any) -> Any:
        current = Current()
        wrap_linears(model, current)
        return best_runner(model, current)

    assert isinstance(runner(build("gemma3")), FlatRunner)
    assert isinstance(runner(made("convolutions")), RowRunner)
    assert isinstance(runner(made("alibi")), RowRunner)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotations_that_follow_the_longest_row_are_computed_row_by_row(kind: str) -> None:
    model = build("llama")
    current = Current()
    wrap_linears(model, current)
    model.model.rotary_emb.rope_type = kind
    assert isinstance(best_runner(model, current), RowRunner)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_gives_the_plain_logits_in_every_mix(family: str) -> None:
    """Chunks of prompts, single tokens and wanted logits in one step, against the model row by row."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 256, (3, 40), generator=generator).tolist()
    found = []
    for kind in (RowRunner, FlatRunner):
        model, current = build(family), Current()
        wrap_linears(model, current)
        runner = best_runner(model, current) if kind is FlatRunner else RowRunner(model, current)
        assert isinstance(runner, kind)
        rows = [runner.memory(0) for _ in ids]
        logits = [runner.run([Part(rows[0], ids[0][:30], None, "none"), Part(rows[1], ids[1][:7], None)])]
        logits.append(
            runner.run(
                [
                    Part(rows[1], ids[1][7:8], None),
                    Part(rows[0], ids[0][30:40], None, "all"),
                    Part(rows[2], ids[2], None),
                ]
            )
        )
        logits.append(runner.run([Part(row, [5], None) for row in rows]))
        found.append(torch.cat([one for one in logits if one.numel()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_layers_of_known_structure_are_fused_and_others_left(family: str) -> None:
    model, current = build(family), Current()
    wrap_linears(model, current)
    best_runner(model, current)
    assert [type(layer) for layer in model.model.layers] == [StreamLayer] * 2
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.k_proj.weight.untyped_storage().data_ptr()
    other, current = build("gemma"), Current()
    wrap_linears(other, current)
    best_runner(other, current)
    assert not any(isinstance(layer, StreamLayer) for layer in other.model.layers)


def test_fused_layers_that_give_other_logits_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = stream_layers.rms_norm
    monkeypatch.setattr(stream_layers, "rms_norm", lambda x, weights: norm(x * 1.01 + 0.01, weights))
    model, current = build("llama"), Current()
    expected = build("llama")(torch.tensor([[5, 6, 7]])).logits[0, -1]
    wrap_linears(model, current)
    runner = best_runner(model, current)
    assert isinstance(runner, FlatRunner) and not any(isinstance(m, StreamLayer) for m in model.modules())
    found = runner.run([Part(runner.memory(0), [5, 6, 7], None)])[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ranks", [(4, 4, 4, 4), (4, 2, 4, 6)])
def test_many_adapters_side_by_side_answer_as_each_alone(
    ranks: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long answers, so that the same adapters meet in many steps; those of one rank are multiplied together."""
    base = base_folder(tmp_path / "base", model=build("llama"))
    folders = [adapter_folder(tmp_path / f"a{i}", base, i, rank=rank) for i, rank in enumerate(ranks)]
    models = [ModelRef(str(base), folder, "raw") for folder in (*folders, None)]
    asks = [Ask(ref, conversation(f"hello {i}"), 40, GREEDY) for i, ref in enumerate(models)]
    stacked: list[Any] = []
    make = adapters._stacked

    def kept(spans: Any, path: str) -> Any:
        stacked.append(make(spans, path))
        return stacked[-1]

    monkeypatch.setattr(adapters, "_stacked", kept)

    async def work(engine: TorchServing) -> Any:
        alone = [(await answers(engine, [ask]))[0] for ask in asks]
        return alone, await answers(engine, asks)

    alone, together = serve(work)
    assert alone == together and len(set(alone)) == 5
    assert any(one is not None for one in stacked) == (len(set(ranks)) == 1)


def test_an_adapter_that_brings_whole_modules_is_a_model_of_its_own(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    adapter = adapter_folder(tmp_path / "whole", base, 3, modules_to_save=("embed_tokens",))
    thin = adapter_folder(tmp_path / "thin", base, 4)
    assert batchable(thin) and not batchable(adapter)
    asked = prompts(lengths=(5, 20))
    models = [ModelRef(str(base), folder, "raw") for folder in (None, adapter, thin)]
    expected = [[one.text for one in plain_engine(ref).generate(asked, NEW)] for ref in models]
    asks = [Ask(ref, tuple(p), NEW, GREEDY) for ref in models for p in asked]

    async def work(engine: TorchServing) -> Any:
        return await answers(engine, asks), engine.state()["models_resident"]

    found, resident = serve(work)
    assert found == [text for one in expected for text in one] and resident == 2


def test_a_full_fine_tune_is_served_from_its_folder(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    loaded = load_base(Base(model=str(base)))
    tuning = attach(loaded, Method(type="full"), 0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.05)
    tuning.save(tmp_path / "full", loaded)
    ref = ModelRef(str(base), tmp_path / "full", "raw")
    asked = prompts(lengths=(5, 20))
    expected = [one.text for one in plain_engine(ref).generate(asked, NEW)]
    assert serve(lambda engine: answers(engine, [Ask(ref, tuple(p), NEW, GREEDY) for p in asked])) == expected


def test_adapters_leave_when_there_are_too_many_and_come_back(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", model=build("llama"))
    models = [ModelRef(str(base), adapter_folder(tmp_path / f"a{i}", base, i), "raw") for i in range(4)]
    asks = [Ask(ref, conversation("hello there"), NEW, GREEDY) for ref in models]

    async def work(engine: TorchServing) -> Any:
        found = []
        for _ in range(2):
            for ask in asks:
                found += await answers(engine, [ask])
                assert engine.state()["adapters_resident"] <= 2
        engine.forget(models[3])
        left = engine.state()["adapters_resident"]
        return found, left, await answers(engine, [asks[3]])

    found, left, again = serve(work, TorchLimits(memory=1 << 28, adapters=2))
    assert found[:4] == found[4:] and len(set(found)) == 4
    assert left == 1 and again == [found[3]]


def test_a_forgotten_adapter_serves_those_who_ask_it_to_the_end(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", model=build("llama"))
    ref = ModelRef(str(base), adapter_folder(tmp_path / "a", base, 1), "raw")
    ask = Ask(ref, conversation("hello there"), 60, GREEDY)

    async def work(engine: TorchServing) -> Any:
        expected = await answers(engine, [ask])
        stream = engine.submit(ask)
        first = await anext(stream)
        engine.forget(ref)
        rest = [first, *[item async for item in stream]]
        return expected[0], "".join(p.text for p in rest[:-1]), engine.state()["adapters_resident"]

    expected, said, resident = serve(work)
    assert said == expected and resident == 0


def test_an_adapter_written_anew_is_read_anew(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    ref = ModelRef(str(base), adapter_folder(tmp_path / "a", base, 1), "raw")
    ask = Ask(ref, conversation("hello there, how are you"), NEW, GREEDY)

    async def work(engine: TorchServing) -> Any:
        before = await answers(engine, [ask])
        adapter_folder(tmp_path / "a", base, 2, rank=5)
        return before, await answers(engine, [ask])

    before, after = serve(work)
    assert [one.text for one in plain_engine(ref).generate([list(ask.prompt)], NEW)] == after != before


def test_a_request_cancelled_while_its_model_is_loaded_holds_on_to_nothing(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    ref = ModelRef(str(base), adapter_folder(tmp_path / "a", base, 1), "raw")

    async def work(engine: TorchServing) -> Any:
        task = asyncio.create_task(told(engine, Ask(ref, conversation("hello"), NEW, GREEDY)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.load(ref)  # behind the one that goes on
        while any(one.asked for one in engine._residents.values()):
            await asyncio.sleep(0.01)
        engine.forget(ref)
        return engine.state()

    state = serve(work)
    assert state["models_resident"] == 1 and state["adapters_resident"] == state["requests"] == 0


def test_models_leave_when_there_are_too_many(tmp_path: Path) -> None:
    bases = [ModelRef(str(base_folder(tmp_path / f, f)), None, "raw") for f in ("llama", "qwen3", "gemma")]
    asks = [Ask(ref, conversation("hello there"), NEW, GREEDY) for ref in bases]

    async def work(engine: TorchServing) -> Any:
        found = []
        for ask in [*asks, asks[0]]:
            found += await answers(engine, [ask])
            assert engine.state()["models_resident"] <= 2
        return found

    found = serve(work, TorchLimits(memory=1 << 28, models=2))
    assert found[0] == found[3] and len(set(found)) == 3


def test_what_cannot_be_loaded_is_said_and_others_go_on(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    other = base_folder(tmp_path / "other", "gpt2")
    wrong = adapter_folder(tmp_path / "wrong", other, 1)
    broken = adapter_folder(tmp_path / "broken", base, 1)
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")

    async def work(engine: TorchServing) -> None:
        for adapter, words in (
            (wrong, "does not fit this base"),
            (broken, "cannot be read"),
            (tmp_path / "gone", "not there any more"),
        ):
            with pytest.raises(TunesmithError, match=words):
                await told(engine, Ask(ModelRef(str(base), adapter, "raw"), conversation("hi"), NEW, GREEDY))
        with pytest.raises(TunesmithError, match="no embedded base"):
            await engine.load(ModelRef("embedded:nothing"))
        assert await answers(engine, [Ask(ModelRef(str(base), None, "raw"), conversation("hi"), NEW, GREEDY)])

    serve(work)


def test_loading_tells_context_and_renderer(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    ref = ModelRef(str(base), adapter_folder(tmp_path / "a", base, 1), "plain")
    loaded = serve(lambda engine: engine.load(ref))
    assert loaded.context == 512 and loaded.ref is ref and loaded.renderer.template == "plain"
    with pytest.raises(TunesmithError, match="no chat template"):
        serve(lambda engine: engine.load(ModelRef(str(base), None, "nothing")))


def test_a_layer_that_sees_other_tokens_is_not_given_a_wrong_update() -> None:
    current = Current()
    current.tokens, current.continued = 5, 2
    assert current.of(3) == ()
    current.spans = (object(),)
    with pytest.raises(EngineError, match="3 of 5 tokens"):
        current.of(3)


def test_two_event_loops_in_turn_are_served(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    engine = TorchServing(TorchLimits(memory=1 << 28))
    ask = Ask(ModelRef(str(base), None, "raw"), conversation("hello"), NEW, GREEDY)
    first = asyncio.run(answers(engine, [ask]))
    assert asyncio.run(answers(engine, [ask])) == first
    asyncio.run(engine.drain(0))
