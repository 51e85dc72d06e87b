"""The sections `goal`, `evaluate`, `remotes` and `verdict`: what counts as worth it, and how it is proved."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.recipe.section import METRIC_PATTERN, Auto, Section

BaselineName = Literal["zero_shot", "few_shot", "retrieval", "documents", "trivial"]
ALL_BASELINES: tuple[BaselineName, ...] = ("zero_shot", "few_shot", "retrieval", "documents", "trivial")
"""`documents` is measured where `data.documents` names some."""
Decoding = Literal["free", "grammar", "scored"]
"""How a prompted model gives its answer: as it likes; only in the task's closed form; or, of the labels, the one it
finds most probable."""


class Goal(Section):
    """Why this is done at all."""

    use_case: str | None = Field(None, description="The use case in words: who asks what, and what for.")
    improve: str | None = Field(None, description="What should become better than it is now.")
    metric: str = Field(
        "auto",
        pattern=METRIC_PATTERN,
        description="The metric that decides: one of the task's, or of `task.metrics`; auto is the task's first one.",
    )
    target: float | None = Field(None, ge=0, le=1, description="The value (0-1) below which nothing is good enough.")
    when_reached: Literal["stop", "train"] = Field(
        "stop",
        description="Where an alternative surely reaches the target before anything is trained: stop and recommend "
        "it, or train all the same.",
    )
    use: Literal["commercial", "research"] | None = Field(
        None, description="What the model shall be used for: the licence of the base is held against it."
    )
    requests_per_month: int = Field(10_000, ge=1, description="Expected requests per month; for cost and break-even.")


class Evaluate(Section):
    """How candidates are scored on the frozen test set."""

    max_new_tokens: int | Auto = Field("auto", description="Longest answer in tokens; auto covers those expected.")
    batch_size: int = Field(32, ge=1, description="Answers generated at once.")
    few_shot_k: list[int] = Field([1, 2, 4, 8], description="Numbers of examples tried on validation, for few-shot.")
    few_shot_choice: list[Literal["diverse", "fixed"]] = Field(
        ["diverse"],
        description="How the examples of few-shot are picked, tried on validation: as unlike each other as can be, or "
        "the first of the file.",
    )
    retrieval_k: list[int] = Field([1, 2, 4, 8], description="Numbers of examples tried on validation, for retrieval.")
    documents_k: list[int] = Field([1, 2, 4], description="Numbers of passages tried on validation, for documents.")
    embedding_model: str | None = Field(
        None,
        description="Encoder (hub id or local folder) by which retrieval and documents find what is near in meaning; "
        "without one they find shared words (BM25).",
    )
    instructions: list[str] = Field(
        default_factory=list,
        description="Other wordings of the instruction, tried on validation for every alternative that is a prompt.",
    )
    decoding: Literal["auto"] | list[Decoding] = Field(
        "auto",
        description="How answers are given: free, under the task's grammar (labels, JSON), or by scoring every label. "
        "The first decides, each further one is shown as a candidate of its own; auto is free, and for labels scored "
        "too.",
    )
    samples: int = Field(
        1, ge=1, description="Answers drawn per row for pass@k, beside the greedy one that counts for pass@1; 1: none."
    )
    temperature: float = Field(0.8, gt=0, le=2, description="Temperature of the answers drawn beside the greedy one.")
    seeds: int = Field(
        1, ge=1, description="Trainings with different seeds that are evaluated; from 2 on their spread counts too."
    )
    forgetting: bool = Field(True, description="Measure general text and general instructions before and after tuning.")
    general_text: str | None = Field(
        None, description="Text file for forgetting, in place of the one that comes with Tunesmith."
    )
    general_instructions: str | None = Field(
        None, description="Rows (prompt, answer) for forgetting, in place of those that come with Tunesmith."
    )
    selection_rows: int = Field(48, ge=1, description="Validation rows used to choose k.")
    bootstrap: int = Field(10_000, ge=100, description="Bootstrap resamples.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of every interval.")
    latency_rows: int = Field(12, ge=1, description="Test rows asked one at a time to measure latency.")


class Remote(Section):
    """A model behind an OpenAI-compatible endpoint, measured as one more alternative."""

    url: str = Field(pattern=r"^https?://", description="Address up to and including /v1.")
    model: str = Field(description="The model's name there.")
    api_key_env: str | None = Field(
        None, description="Environment variable with the key; the key itself never stands in a recipe."
    )
    prompt_price: float = Field(0.0, ge=0, description="Price of a million prompt tokens.")
    answer_price: float = Field(0.0, ge=0, description="Price of a million answer tokens.")
    max_cost: float | None = Field(
        None, gt=0, description="Money that a run may spend there; it stops before it would be exceeded."
    )
    few_shot_k: int = Field(0, ge=0, description="Examples put into every prompt.")
    timeout: float = Field(60.0, gt=0, description="Seconds an answer may take.")
    retries: int = Field(5, ge=0, description="Further tries after a time-out, a rate limit or a server error.")
    concurrency: int = Field(4, ge=1, le=64, description="Requests under way at once.")


class Prices(Section):
    """Money; every figure is the user's, the defaults are examples and shown as assumptions."""

    currency: str = Field("USD", description="Currency of all amounts.")
    hardware_per_hour: float = Field(0.10, ge=0, description="Price of one hour of this machine.")
    power_watts: float | None = Field(
        None, gt=0, description="Power this machine draws while it trains; then electricity is shown too."
    )
    electricity_per_kwh: float = Field(0.30, ge=0, description="Price of a kilowatt-hour.")
    devices: dict[str, float] = Field(
        default_factory=dict,
        description="Prices of an hour of other machines, by name, in place of those `tunesmith data preview` knows.",
    )
    services: dict[str, float] = Field(
        default_factory=dict,
        description="Prices of a million training tokens of tuning services, by name, in place of those known.",
    )
    hours_of_work: float = Field(4.0, ge=0, description="Human hours for data and review of a tuned model.")
    work_per_hour: float = Field(60.0, ge=0, description="Price of one human hour.")
    minutes_per_row: float = Field(
        2.0, ge=0, description="Minutes in which a person writes or checks one row; for rows that are missing."
    )
    hosting_hours_per_month: float = Field(
        730.0, ge=0, le=744, description="Hours a month for which the machine that serves is kept running."
    )


class Verdict(Section):
    """When tuning counts as worth it. Only these numbers decide."""

    min_gain: float = Field(0.01, ge=0, le=1, description="Smallest gain of the metric (0-1) worth shipping for.")
    power: float = Field(0.8, gt=0.5, lt=1, description="Power assumed when test rows needed are computed.")
    margin: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Loss of the metric (0-1) that does not matter where the worse is cheaper: tuned then replaces "
        "what costs more if it surely is not worse by more than this. Without it, costs do not decide.",
    )
    months: float = Field(12, gt=0, description="Months over which costs are added up, to say what is cheaper.")
    gates: dict[str, float] = Field(
        default_factory=dict,
        description="The least (0-1) that tuned must have of other metrics, by name; below it, it is not shipped.",
    )
    slice_loss: float | None = Field(
        0.1,
        ge=0,
        le=1,
        description="Loss (0-1) against the best alternative on one slice of the test rows, such as one label, from "
        "which on tuned is not shipped where the loss is sure; none looks at no slices.",
    )
    perplexity_rise: float | None = Field(
        None, ge=0, description="Share by which the perplexity of general text may rise; beyond, tuned is not shipped."
    )
    skill_loss: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Loss (0-1) on general instructions from which on tuned is not shipped where the loss is sure.",
    )
    people: Literal["veto", "show"] = Field(
        "veto",
        description="Where people (or a judge that agrees with them) surely prefer the best alternative's answers: "
        "tuned is not shipped, or it is only said.",
    )
    prices: Prices = Field(default_factory=lambda: Prices(), description="Prices for costs and break-even.")
