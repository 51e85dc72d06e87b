"""The sections `method` and `train`: how the base is tuned."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunesmith.recipe.section import SIZE_PATTERN, Auto, Section


class Method(Section):
    """How the base is tuned. `qlora` and `dora` are short for LoRA on NF4 weights and LoRA with magnitudes."""

    type: Literal["lora", "full", "bottleneck", "peft"] = Field(
        "lora",
        description="LoRA adapters, all weights, bottleneck adapters, or any other method of the peft library.",
    )
    rank: int = Field(16, ge=1, description="Rank of the LoRA matrices.")
    alpha: float | Auto = Field("auto", description="LoRA scaling numerator; auto is twice the rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' input; 0 keeps the exact fast path.")
    use_rslora: bool = Field(False, description="Scale by alpha/sqrt(rank) instead of alpha/rank.")
    use_dora: bool = Field(False, description="Learn the weights' magnitudes beside the low-rank direction (DoRA).")
    init: Literal["default", "gaussian", "pissa", "olora"] = Field(
        "default", description="First values of A and B; pissa and olora begin with the main directions of the weights."
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict,
        description="Other ranks for modules whose names end so or match as regular expression.",
    )
    alpha_pattern: dict[str, float] = Field(default_factory=dict, description="Other alphas, as rank_pattern.")
    lora_plus_ratio: float = Field(
        1.0, ge=1, description="Learning rate of B over that of A (LoRA+); its authors suggest 16."
    )
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Modules that get an adapter: all-linear, or (ends of) module names."
    )
    modules_to_save: list[str] = Field(default_factory=list, description="Modules trained and saved in full.")
    last_layers: int | None = Field(
        None,
        ge=1,
        description="Tune only the last so many layers; those below stay frozen and need no backward pass.",
    )
    quantize: Literal["none", "nf4", "int8"] = Field(
        "none", description="Hold the frozen weights in 4 or 8 bits; nf4 with LoRA is QLoRA."
    )
    double_quantize: bool = Field(True, description="Quantise the scales of nf4 too: 0.4 bits less per weight.")
    bottleneck_size: int = Field(64, ge=1, description="Width of bottleneck adapters.")
    peft_type: str | None = Field(None, description="For type peft: the method's name there, such as VERA.")
    peft_options: dict[str, Any] = Field(default_factory=dict, description="For type peft: options of its config.")
    must_serve: list[Literal["vllm", "gguf"]] = Field(
        default_factory=list, description="Servers that must be able to load the adapter; else training is refused."
    )


class Distillation(Section):
    """Learning from a teacher's probabilities beside the rows' tokens."""

    teacher: str = Field(description="The teacher: hub id, local folder, embedded:NAME, or a run's folder.")
    weight: float = Field(0.5, gt=0, le=1, description="Share of the teacher in the loss; the rest is cross-entropy.")
    temperature: float = Field(1.0, gt=0, description="Temperature of both distributions.")


class Train(Section):
    """Optimisation."""

    epochs: float | Auto = Field("auto", description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps; overrides epochs.")
    batch_size: int | Auto = Field("auto", description="Rows per optimiser step.")
    learning_rate: float | Auto = Field("auto", description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = Field(
        "cosine", description="Learning rate after the warm-up."
    )
    decay_ratio: float = Field(
        0.2, gt=0, le=1, description="Share of the steps in which warmup_stable_decay falls to zero, at the end."
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = Field(
        "adamw", description="adamw; with its states in 8 bits; or Muon on hidden matrices and AdamW on the rest."
    )
    optimizer_in_backward: bool = Field(
        False, description="Update each tensor as soon as its gradient is there: less memory, no clipping by norm."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay on matrices.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1.")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW beta2.")
    epsilon: float = Field(1e-8, gt=0, description="AdamW epsilon.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient norm is clipped to this; 0 does not clip.")
    seed: int = Field(0, ge=0, description="Seed of adapter initialisation, row order and dropout.")
    max_length: int | Auto = Field("auto", description="Longest row in tokens; auto is the base's context.")
    loss: Literal["assistant", "last", "all"] = Field(
        "assistant", description="Learn every assistant turn, only the last one, or every token."
    )
    objective: str = Field(
        "cross_entropy",
        description="What is minimised: cross_entropy, contrastive, or your own as file.py:function or file.py:Class.",
    )
    objective_options: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the objective: of the class's __init__, or further keywords."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Probability mass spread over all tokens.")
    z_loss: float = Field(0.0, ge=0, description="Weight of the squared log-partition; keeps logits small.")
    neftune_alpha: float = Field(0.0, ge=0, description="Uniform noise on the embeddings while training (NEFTune).")
    distillation: Distillation | None = Field(None, description="Learn from a teacher's probabilities too.")
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = Field(
        "auto",
        description="Type of matrix products; auto is what the device computes fastest without loss scaling, and never "
        "fp8 (frozen and trained linear layers in 8-bit floats, on GPUs that have them).",
    )
    cuda_graphs: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Replay micro-batches of fixed shapes as captured graphs on a GPU: no launch overhead. auto is "
        "off: it has not been measured on a GPU yet.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compile each kind of layer once (torch.compile) and keep what was compiled for the next run. auto "
        "is off: on a CPU it loses, and it has not been measured on a GPU yet.",
    )
    recompute: Literal["auto", "on", "off"] | int = Field(
        "auto",
        description="Compute layers again in the backward pass instead of keeping their activations: all (on), none "
        "(off), or how many of the lowest tuned ones; auto only where memory asks for it.",
    )
    share_prefixes: bool = Field(
        True, description="Compute what rows of a step begin with alike once; exact, off with dropout or noise."
    )
    cache_trunk: Literal["auto", "on", "off"] = Field(
        "auto", description="With last_layers: keep what the frozen layers compute on disk, for the next epochs."
    )
    micro_batch_tokens: int | Auto = Field("auto", description="Tokens computed at once; memory, not results.")
    memory_limit: str = Field(
        "auto",
        pattern=SIZE_PATTERN,
        description="Memory the training may take, such as 6GB; auto is nine tenths of what is free.",
    )
    token_accuracy: bool = Field(
        False, description="Count how many learnt tokens were the most probable ones; plain cross_entropy only."
    )
    log_every: int = Field(0, ge=0, description="Optimiser steps after which one is told; 0 tells twice a second.")
    evaluations: int = Field(8, ge=0, description="How often validation is measured during training.")
    watch_every: int = Field(
        0, ge=0, description="Optimiser steps after which the loss of some validation rows is measured; 0 never."
    )
    watch_rows: int = Field(8, ge=1, description="Validation rows that watch_every measures, others each time.")
    loss_on: Literal["validation", "test"] = Field(
        "validation",
        description="Rows whose loss is measured during training; test only to look at, with select_by: last.",
    )
    eval_rows: int = Field(64, ge=0, description="Validation rows answered (generated) at each evaluation.")
    patience: int = Field(3, ge=0, description="Evaluations without improvement before stopping; 0 never stops.")
    select_by: Literal["metric", "loss", "last"] = Field(
        "metric", description="What chooses the best checkpoint; last chooses none and never stops early."
    )
    keep_checkpoints: int = Field(2, ge=1, description="Recent checkpoints kept, beside the best.")
    keep_epochs: int = Field(0, ge=0, description="Last ends of epochs of which the weights are kept.")
    tensorboard: bool = Field(True, description="Write TensorBoard files into the run.")
    trackers: list[Literal["mlflow", "wandb", "trackio"]] = Field(
        default_factory=list, description="Where curves are sent beside the run's own events; must be installed."
    )
    sharding: Literal["none", "fsdp", "layers"] = Field(
        "none",
        description="With several devices: each holds all weights (none), a share of every tensor (fsdp), "
        "or some of the layers (layers, in one process).",
    )
    cpu_offload: bool = Field(False, description="With fsdp: keep weights and optimiser in the CPU's memory.")
