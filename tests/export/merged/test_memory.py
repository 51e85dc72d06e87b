"""Memory of a merge, measured in a process of its own: not much more than the largest file and the adapter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.export.made import made_source, recipe_of
from tests.tiny import byte_tokenizer, save_base
from tunesmith.runs import RunFolder

LONG = pytest.mark.skipif(os.environ.get("TUNESMITH_LONG") != "1", reason="TUNESMITH_LONG=1 measures both types")
ROOT = Path(__file__).resolve().parents[3]

MEASURED = """
import json, re, sys
from pathlib import Path
from tests.export.made import work_for
from tunesmith.export.merged import write_merged
from tunesmith.export.source import open_source
from tunesmith.recipe import load_recipe
from tunesmith.runs import RunFolder

def held(key):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\\s+(\\d+) kB", status)[1]) * 1024

def merge(run, out):
    folder = RunFolder(Path(run))
    return write_merged(work_for(open_source(folder, load_recipe(folder.recipe_file)), "merged", "own", Path(out)))

small, large, out = sys.argv[1:]
merge(small, out + "/small")  # libraries are loaded, and what they keep
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = held("VmRSS")
facts = merge(large, out + "/large")
print(json.dumps({"grown": held("VmHWM") - before, "largest": facts["largest_file_bytes"], **facts}))
"""


def measured(small: RunFolder, large: RunFolder, out: Path) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    arguments = [sys.executable, "-c", MEASURED, str(small.path), str(large.path), str(out)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, cwd=out)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=LONG)], ids=str)
def test_a_merge_takes_little_more_than_the_largest_file_and_the_adapter(dtype, tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=256,
    )
    base = tmp_path / "base"
    LlamaForCausalLM(config).to(dtype).save_pretrained(
        base, max_shard_size="50MB" if dtype == torch.float32 else "25MB"
    )
    byte_tokenizer().save_pretrained(base)
    files = sorted(path.stat().st_size for path in base.glob("*.safetensors"))
    assert len(files) >= 3 and sum(files) > 2.5 * max(files)
    small, _ = made_source(tmp_path / "small", recipe_of(save_base(tmp_path / "tiny"), {}))
    large, _ = made_source(tmp_path / "large", recipe_of(base, {"rank": 8}))
    adapter = (large.tuned / "adapter_model.safetensors").stat().st_size
    found = measured(RunFolder(tmp_path / "small"), RunFolder(tmp_path / "large"), tmp_path)
    assert small.is_adapter and found["way"] == "tensor by tensor"
    print(
        f"{found['grown'] / 1e6:.0f} MB; largest file {found['largest'] / 1e6:.0f} MB, adapter {adapter / 1e6:.0f} MB"
    )
    assert found["grown"] <= 1.3 * found["largest"] + adapter
