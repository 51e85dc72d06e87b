"""The GGUF format read: every type of setting, and files that end too soon."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from tunesmith.errors import EngineError
from tunesmith.inference.gguf_file import GgufFile

SETTINGS = {
    "a.uint8": (7, gguf.GGUFValueType.UINT8),
    "a.int8": (-7, gguf.GGUFValueType.INT8),
    "a.uint16": (60_000, gguf.GGUFValueType.UINT16),
    "a.int16": (-30_000, gguf.GGUFValueType.INT16),
    "a.uint32": (4_000_000_000, gguf.GGUFValueType.UINT32),
    "a.int32": (-2_000_000_000, gguf.GGUFValueType.INT32),
    "a.float32": (0.5, gguf.GGUFValueType.FLOAT32),
    "a.bool": (True, gguf.GGUFValueType.BOOL),
    "a.string": ("Zoë 茶", gguf.GGUFValueType.STRING),
    "a.uint64": (2**40, gguf.GGUFValueType.UINT64),
    "a.int64": (-(2**40), gguf.GGUFValueType.INT64),
    "a.float64": (1 / 3, gguf.GGUFValueType.FLOAT64),
    "a.texts": (["x", "", "yy"], gguf.GGUFValueType.ARRAY),
    "a.numbers": ([1, -2, 3], gguf.GGUFValueType.ARRAY),
    "a.flags": ([True, False], gguf.GGUFValueType.ARRAY),
    "a.bytes": (b"\x01\xff", gguf.GGUFValueType.ARRAY),
    "a.nested": ([[1, 2], [3]], gguf.GGUFValueType.ARRAY),
}


def write(path: Path, alignment: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    tensors = {"one": rng.normal(size=(3, 5)), "two": rng.normal(size=7), "three": rng.normal(size=(2, 3, 64))}
    writer = gguf.GGUFWriter(path, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for key, (value, kind) in SETTINGS.items():
        writer.add_key_value(key, value, kind)
    for name, values in tensors.items():
        writer.add_tensor(name, values.astype(np.float32))
    blocks = gguf.quants.quantize(tensors["three"].astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("eight bits", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {**tensors, "eight bits": tensors["three"]}


@pytest.mark.parametrize("alignment", [32, 256])
def test_settings_and_tensors_are_read(alignment: int, tmp_path: Path) -> None:
    tensors = write(tmp_path / "a.gguf", alignment)
    file = GgufFile(tmp_path / "a.gguf")
    for key, (value, _) in SETTINGS.items():
        assert file.fields[key] == (list(value) if isinstance(value, bytes) else value), key
    assert file.tensors.keys() == tensors.keys()
    for name, values in tensors.items():
        found = file.tensor(name)
        assert found.dtype == np.float32
        assert np.abs(found - values).max() < (0.02 if name == "eight bits" else 1e-6), name
    assert np.array_equal(file.tensor("one"), gguf.GGUFReader(tmp_path / "a.gguf").tensors[0].data)


def test_a_file_cut_short_anywhere_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    whole = (tmp_path / "a.gguf").read_bytes()
    header = GgufFile(tmp_path / "a.gguf").tensors["one"].start
    for length in (0, 3, 10, 30, *range(40, header - 32, 41)):
        path = tmp_path / f"{length}.gguf"
        path.write_bytes(whole[:length])
        with pytest.raises(EngineError, match="cannot be read"):
            GgufFile(path)
    (tmp_path / "late.gguf").write_bytes(whole[:-40])
    with pytest.raises(EngineError, match="the file ends within eight bits"):
        GgufFile(tmp_path / "late.gguf").tensor("eight bits")


def test_other_files_are_told(tmp_path: Path) -> None:
    for name, content in (("zip", b"PK\x03\x04" + bytes(40)), ("version", b"GGUF\x09" + bytes(40))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EngineError, match="does not begin as one"):
            GgufFile(tmp_path / name)
    with pytest.raises(EngineError, match="cannot be read"):
        GgufFile(tmp_path / "nowhere.gguf")


def test_spoilt_bytes_are_told_or_read(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    whole = (tmp_path / "a.gguf").read_bytes()
    header = GgufFile(tmp_path / "a.gguf").tensors["one"].start
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(400):
        spoilt = bytearray(whole)
        for place in rng.integers(4, header, 3):
            spoilt[place] = rng.integers(0, 256)
        (tmp_path / "spoilt.gguf").write_bytes(spoilt)
        try:
            file = GgufFile(tmp_path / "spoilt.gguf")
            for name in file.tensors:
                file.tensor(name)
        except EngineError:
            told += 1
    assert told > 50


@pytest.mark.parametrize("alignment", [0, "wide"])
def test_an_alignment_that_is_none_is_told(alignment: int | str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    kind = gguf.GGUFValueType.STRING if isinstance(alignment, str) else gguf.GGUFValueType.UINT32
    writer.add_key_value("general.alignment", alignment, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EngineError, match="cannot be read"):
        GgufFile(tmp_path / "a.gguf")
