"""Azure's copying of a checkpoint to another account: here every account is this server, so the copy is there at once,
under the same name, and what is kept is for whom it was asked.
"""

from __future__ import annotations

from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError
from tunesmith.service.jobs.operations import find_job
from tunesmith.service.store.nouns import Checkpoint, Model


def copied_model(service: Service, job_id: str, checkpoint: str) -> Model:
    """The model of a job's checkpoint, which is named by its name or id. Raises `ApiError` 404."""
    job = find_job(service, job_id)
    made = service.store.get(Checkpoint, checkpoint)
    name = made.name if made is not None else checkpoint
    model = service.store.get(Model, name)
    if model is None or model.job_id != job.id:
        raise ApiError(
            404,
            f"The job {job.id} has no checkpoint '{checkpoint[:200]}'; GET …/fine_tuning/jobs/{job.id}/checkpoints "
            "lists those it has.",
            param="fine_tuning_checkpoint_id",
        )
    return model


def copy_checkpoint(service: Service, job_id: str, checkpoint: str, destination: str, region: str) -> Model:
    """Keep that a checkpoint was copied to an account. Asking for the same again changes nothing."""
    model = copied_model(service, job_id, checkpoint)
    wanted = {"destinationResourceId": destination, "region": region}
    if wanted in model.copies:
        return model
    return service.store.update(Model, model.id, copies=(*model.copies, wanted)) or model
