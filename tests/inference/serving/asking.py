"""What the serving tests share: bases and adapters on disk, and asking many things at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.inference.test_torch_engine import stopping_model
from tests.tiny import byte_tokenizer
from tunesmith.data.types import Message
from tunesmith.inference.serving.torch_serving import TorchLimits, TorchServing
from tunesmith.inference.serving.types import Ask, Decoding, ModelRef, Piece, Usage, answer_text
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.models.adapter import save_adapter
from tunesmith.models.load import load_base
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.models.methods import load_tuned
from tunesmith.recipe.schema import Base
from tunesmith.text.render import Renderer

GREEDY = Decoding(temperature=0.0)
LIMITS = TorchLimits(memory=1 << 28)


def base_folder(folder: Path, family: str = "llama", model: Any = None) -> Path:
    """A base whose answers end at different places."""
    (model if model is not None else stopping_model(family)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def adapter_folder(folder: Path, base: str | Path, seed: int, scale: float = 0.3, **settings: Any) -> Path:
    """A LoRA adapter with random factors."""
    loaded = load_base(Base(model=str(base)))
    attached = attach_lora(loaded.model, LoraSettings(**{"rank": 4, "alpha": 8.0, **settings}), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in attached.layers.values():
            layer.lora_B.normal_(0, scale, generator=generator)
            if layer.magnitude is not None:
                layer.magnitude.mul_(1 + 0.2 * torch.rand(layer.magnitude.shape, generator=generator))
    conv1d = any(layer.conv1d for layer in attached.layers.values())
    save_adapter(folder, attached, base=str(base), revision=None, conv1d=conv1d)
    return folder


def plain_engine(ref: ModelRef) -> TorchEngine:
    """The engine of evaluations on the same model."""
    base = load_base(Base(model=ref.base))
    if ref.adapter is not None:
        load_tuned(base, ref.adapter)
    return TorchEngine(base.model, Renderer(base.tokenizer, ref.chat_template), base.context)


def serve(work: Callable[[TorchServing], Awaitable[Any]], limits: TorchLimits = LIMITS) -> Any:
    """What `work` gives with a server's engine, which is ended afterwards."""

    async def run() -> Any:
        engine = TorchServing(limits)
        try:
            return await asyncio.wait_for(work(engine), timeout=180)
        finally:
            await engine.drain(0)

    return asyncio.run(run())


async def told(engine: TorchServing, ask: Ask, delay: float = 0.0) -> tuple[list[Piece], Usage]:
    """All pieces of one request, and its usage."""
    await asyncio.sleep(delay)
    pieces: list[Piece] = []
    async for item in engine.submit(ask):
        if isinstance(item, Usage):
            return pieces, item
        pieces.append(item)
    raise AssertionError("no usage at the end")


async def answers(engine: TorchServing, asks: Sequence[Ask], stagger: float = 0.0) -> list[str]:
    """The first answer to each, asked at once or one a little after the other."""
    found = await asyncio.gather(*(told(engine, ask, i * stagger) for i, ask in enumerate(asks)))
    return [answer_text(pieces) for pieces, _ in found]


def conversation(text: str, system: str = "") -> tuple[Message, ...]:
    return (*([Message("system", system)] if system else []), Message("user", text))
