"""First tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="audit_entries_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("audit_entries_in_order", "audit_entries", ["created_at", "added"], unique=False)
    op.create_table(
        "batches",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Text(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("output_file_id", sa.Text(), nullable=True),
        sa.Column("error_file_id", sa.Text(), nullable=True),
        sa.Column("errors", sa.JSON(), nullable=True),
        sa.Column("request_counts", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.Column("moments", sa.JSON(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("usage", sa.JSON(), nullable=True),
        sa.Column("output_seconds", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="batches_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("batches_by_status", "batches", ["status", "created_at", "added"], unique=False)
    op.create_index("batches_in_order", "batches", ["created_at", "added"], unique=False)
    op.create_table(
        "checkpoints",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="checkpoints_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("checkpoints_by_job_id", "checkpoints", ["job_id", "created_at", "added"], unique=False)
    op.create_index("checkpoints_by_name", "checkpoints", ["name", "created_at", "added"], unique=False)
    op.create_index("checkpoints_in_order", "checkpoints", ["created_at", "added"], unique=False)
    op.create_table(
        "deployments",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("sku", sa.JSON(), nullable=False),
        sa.Column("properties", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="deployments_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("deployments_in_order", "deployments", ["created_at", "added"], unique=False)
    op.create_table(
        "eval_runs",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("eval_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("data_source", sa.JSON(), nullable=False),
        sa.Column("result_counts", sa.JSON(), nullable=False),
        sa.Column("per_testing_criteria_results", sa.JSON(), nullable=False),
        sa.Column("per_model_usage", sa.JSON(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.Column("items", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="eval_runs_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("eval_runs_by_eval_id", "eval_runs", ["eval_id", "created_at", "added"], unique=False)
    op.create_index("eval_runs_by_status", "eval_runs", ["status", "created_at", "added"], unique=False)
    op.create_index("eval_runs_in_order", "eval_runs", ["created_at", "added"], unique=False)
    op.create_table(
        "evals",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("data_source_config", sa.JSON(), nullable=False),
        sa.Column("testing_criteria", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="evals_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("evals_in_order", "evals", ["created_at", "added"], unique=False)
    op.create_table(
        "events",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="events_id"),
        sa.UniqueConstraint("job_id", "seq", name="events_job_id_seq"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "files",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("status_details", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.Column("flavour", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="files_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("files_by_blob", "files", ["blob", "created_at", "added"], unique=False)
    op.create_index("files_by_expires_at", "files", ["expires_at", "created_at", "added"], unique=False)
    op.create_index("files_by_purpose", "files", ["purpose", "created_at", "added"], unique=False)
    op.create_index("files_in_order", "files", ["created_at", "added"], unique=False)
    op.create_table(
        "gone",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("added", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "id"),
    )
    op.create_index(op.f("ix_gone_removed_at"), "gone", ["removed_at"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("training_file", sa.Text(), nullable=False),
        sa.Column("validation_file", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("method", sa.JSON(), nullable=False),
        sa.Column("suffix", sa.Text(), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.Column("integrations", sa.JSON(), nullable=False),
        sa.Column("hyperparameters", sa.JSON(), nullable=False),
        sa.Column("resolved", sa.JSON(), nullable=False),
        sa.Column("fine_tuned_model", sa.Text(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("estimated_finish", sa.BigInteger(), nullable=True),
        sa.Column("trained_tokens", sa.BigInteger(), nullable=True),
        sa.Column("result_files", sa.JSON(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("wish", sa.Text(), nullable=True),
        sa.Column("run", sa.Text(), nullable=True),
        sa.Column("rows", sa.Text(), nullable=True),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("evidence_error", sa.Text(), nullable=True),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("flavour", sa.Text(), nullable=False),
        sa.Column("extra", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="jobs_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("jobs_by_evidence", "jobs", ["evidence", "created_at", "added"], unique=False)
    op.create_index("jobs_by_fine_tuned_model", "jobs", ["fine_tuned_model", "created_at", "added"], unique=False)
    op.create_index("jobs_by_status", "jobs", ["status", "created_at", "added"], unique=False)
    op.create_index("jobs_by_training_file", "jobs", ["training_file", "created_at", "added"], unique=False)
    op.create_index("jobs_in_order", "jobs", ["created_at", "added"], unique=False)
    op.create_table(
        "keys",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("digest", name="keys_digest"),
        sa.UniqueConstraint("id", name="keys_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("keys_in_order", "keys", ["created_at", "added"], unique=False)
    op.create_table(
        "leases",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("until", sa.Float(precision=53), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="leases_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("leases_in_order", "leases", ["created_at", "added"], unique=False)
    op.create_table(
        "models",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("owned_by", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=True),
        sa.Column("chat_template", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("root", sa.Text(), nullable=True),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("copies", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="models_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("models_by_job_id", "models", ["job_id", "created_at", "added"], unique=False)
    op.create_index("models_in_order", "models", ["created_at", "added"], unique=False)
    op.create_table(
        "output_items",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("datasource_item", sa.JSON(), nullable=False),
        sa.Column("results", sa.JSON(), nullable=False),
        sa.Column("sample", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="output_items_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("output_items_by_run_id", "output_items", ["run_id", "place", "added"], unique=False)
    op.create_table(
        "permissions",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="permissions_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("permissions_by_checkpoint", "permissions", ["checkpoint", "created_at", "added"], unique=False)
    op.create_index("permissions_in_order", "permissions", ["created_at", "added"], unique=False)
    op.create_table(
        "repeats",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="repeats_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("repeats_in_order", "repeats", ["created_at", "added"], unique=False)
    op.create_table(
        "stored_completions",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="stored_completions_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("stored_completions_by_model", "stored_completions", ["model", "created_at", "added"], unique=False)
    op.create_index("stored_completions_in_order", "stored_completions", ["created_at", "added"], unique=False)
    op.create_table(
        "stored_responses",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="stored_responses_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("stored_responses_in_order", "stored_responses", ["created_at", "added"], unique=False)
    op.create_table(
        "upload_parts",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("upload_id", sa.Text(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="upload_parts_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("upload_parts_by_blob", "upload_parts", ["blob", "created_at", "added"], unique=False)
    op.create_index("upload_parts_by_upload_id", "upload_parts", ["upload_id", "created_at", "added"], unique=False)
    op.create_index("upload_parts_in_order", "upload_parts", ["created_at", "added"], unique=False)
    op.create_table(
        "uploads",
        sa.Column("added", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("file_expires_after", sa.BigInteger(), nullable=True),
        sa.Column("part_ids", sa.JSON(), nullable=False),
        sa.Column("flavour", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("added"),
        sa.UniqueConstraint("id", name="uploads_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("uploads_by_status", "uploads", ["status", "created_at", "added"], unique=False)
    op.create_index("uploads_in_order", "uploads", ["created_at", "added"], unique=False)
