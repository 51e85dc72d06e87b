"""What tuned models and their checkpoints are called."""

from __future__ import annotations

import re
import secrets

from tunesmith.service.ids import azure_tuned_name, checkpoint_name, new_id, tuned_name
from tunesmith.service.store.nouns import Job

_CHECKPOINT = re.compile(r":ckpt-step-\d+\Z")
_AZURE = re.compile(r"\.ft-[0-9a-f]{32}.*\Z")


def root_of(model: str) -> str:
    """The model at the beginning of a name: of `ft:gpt-4o-mini-2024-07-18:org::abc12345:ckpt-step-90` the second part.

    A model that was tuned twice is named after its base, and not after the one in between.
    """
    name = _CHECKPOINT.sub("", model)
    if name.startswith("ft:") and name.count(":") >= 4:
        return name.removeprefix("ft:").rsplit(":", 3)[0]
    return _AZURE.sub("", name)


def new_tuned_name(job: Job) -> str:
    """A name for the job's model, in the dialect in which it was asked for; new each time."""
    root = root_of(job.model)
    if job.flavour == "azure":
        return azure_tuned_name(root, job.suffix, secrets.token_hex(16))
    return tuned_name(root, job.organization_id, job.suffix, new_id("", separator="", length=8))


def new_checkpoint_name(job: Job, step: int) -> str:
    """A name for the model as it was after `step`: at OpenAI with eight characters of its own."""
    tuned = job.fine_tuned_model if job.flavour == "azure" else None
    return checkpoint_name(tuned or new_tuned_name(job), step)
