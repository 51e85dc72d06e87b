"""The script that `startup.py` compares with: LoRA by TRL's SFTTrainer on a CPU, until its first step is done.

python benchmarks/_startup_peer.py ROWS BASE FOLDER     # prints the time (seconds since 1970) of that moment
"""

import os
import sys
import time
from typing import Any

from datasets import load_dataset  # type: ignore[import-untyped]
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]


class Stop(TrainerCallback):  # type: ignore[misc]
    """Ends the process with the first step."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        print(time.time(), flush=True)
        os._exit(0)


rows, base, folder = sys.argv[1:]
trainer = SFTTrainer(
    model=base,
    args=SFTConfig(
        output_dir=f"{folder}/peer",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=8,
        learning_rate=2e-4,
        model_init_kwargs={"dtype": "float32"},
        report_to="none",
        dataloader_pin_memory=False,
    ),
    train_dataset=load_dataset("json", data_files=rows, split="train", cache_dir=f"{folder}/datasets"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.add_callback(Stop())
trainer.train()
