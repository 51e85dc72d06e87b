"""Modules trained in full beside an adapter: weights of their own, and the base's kept to answer without them.

As PEFT does it, each such module trains a copy. A head that shared its weight with the embeddings, or the other way
round, is thereby untied: the copy moves away from what the other one keeps, unless the two are trained as one
(`tied`). Copies are at least fp32, because updates smaller than half precision can hold would be lost; a module in a
half-precision model then takes and gives the model's type, which it remembers as `model_dtype`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn


class OwnWeights:
    """The modules at `paths` of a model with weights of their own, trained.

    Attributes
    ----------
    modules: the modules by path.
    tied: whether embeddings and head are among them and train one weight.
    """

    def __init__(self, model: Any, paths: Iterable[str], *, tied: bool = False) -> None:
        self.modules: dict[str, nn.Module] = {path: model.get_submodule(path) for path in paths}
        self._base: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._own: list[nn.Parameter] = []
        copies: dict[int, nn.Parameter] = {}
        for module in self.modules.values():
            dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
            for holder in module.modules():
                for name, parameter in list(holder.named_parameters(recurse=False)):
                    copy = copies.get(id(parameter)) if tied else None
                    if copy is None:
                        wide = torch.promote_types(parameter.dtype, torch.float32)
                        copy = nn.Parameter(parameter.detach().to(wide, copy=True))
                        copies[id(parameter)] = copy
                    setattr(holder, name, copy)
                    self._base.append((holder, name, parameter))
                    self._own.append(copy)
            if dtypes & {torch.float16, torch.bfloat16}:
                module.register_forward_pre_hook(_take_own_type)
                half = dtypes.pop()
                module.register_forward_hook(partial(_give_type, dtype=half))
                cast(Any, module).model_dtype = half
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        self.tied = bool(copies) and head is not None and head.weight is embeddings.weight and head.weight.requires_grad
        if any(end in self.modules.values() for end in (embeddings, head)) and not self.tied:
            model.config.tie_word_embeddings = False  # else saving or resizing the model would tie them again

    def tensors(self) -> Mapping[str, Tensor]:
        """The trained weights by their paths in the model."""
        return {
            f"{path}.{name}": value
            for path, module in self.modules.items()
            for name, value in module.state_dict(keep_vars=True).items()
        }

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Within this context the modules have the base's weights."""
        for holder, name, parameter in self._base:
            holder._parameters[name] = parameter
        try:
            yield
        finally:
            for (holder, name, _), own in zip(self._base, self._own, strict=True):
                holder._parameters[name] = own


def _take_own_type(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)


def _give_type(_module: nn.Module, _args: Any, output: Any, dtype: torch.dtype) -> Any:
    return output.to(dtype) if isinstance(output, Tensor) else output
