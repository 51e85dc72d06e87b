"""Adapter files of ONNX Runtime: what is read back is what was written, whatever had to be copied for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tunesmith.export.onnx.adapters import write_adapter_file


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("turned", [False, True])
def test_many_tensors_arrive_as_they_were(tmp_path: Path, dtype: str, turned: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    generator = np.random.default_rng(0)
    given = {f"tensor.{i}": generator.normal(size=(24, 40)).astype(np.float32) for i in range(300)}
    given = {name: one.T for name, one in given.items()} if turned else given
    write_adapter_file(tmp_path / "adapter", given, np.dtype(dtype))
    read = onnxruntime.AdapterFormat.read_adapter(str(tmp_path / "adapter")).get_parameters()
    assert read.keys() == given.keys()
    for name, one in given.items():
        np.testing.assert_array_equal(read[name].numpy(), one.astype(dtype))
