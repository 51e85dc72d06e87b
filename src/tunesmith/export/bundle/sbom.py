"""What a bundle was made of, as a CycloneDX 1.6 bill of materials: libraries, base model, data, the model itself."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from tunesmith.export.bundle.types import Story
from tunesmith.models.artifact import Artifact

_SUBJECT, _BASE = "model", "base"


def sbom(artifact: Artifact, story: Story) -> dict[str, Any]:
    """The document as JSON values. Its serial number follows from the files, so the same export has the same one."""
    made_of = "\n".join(f"{name} {digest}" for name, digest in sorted(artifact.files.items()))
    libraries = [_library(name, version) for name, version in sorted(artifact.versions.items())]
    data = [
        {"type": "data", "bom-ref": f"data:{part}", "name": part, "hashes": [_sha256(digest)]}
        for part, digest in sorted(story.data.items())
    ]
    base = {
        "type": "machine-learning-model",
        "bom-ref": _BASE,
        "name": artifact.base,
        "hashes": [_sha256(artifact.base_sha256)],
        "licenses": [{"license": {"name": story.licence}}],
    }
    subject = {
        "type": "machine-learning-model",
        "bom-ref": _SUBJECT,
        "name": story.name,
        "version": str(artifact.target),
        "description": story.purpose or "a tuned language model",
        "components": [
            {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_sha256(digest)]}
            for name, digest in sorted(artifact.files.items())
        ],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, made_of)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "tools": {"components": [_library("tunesmith", artifact.versions.get("tunesmith", "unknown"), "tool:")]},
            "component": subject,
        },
        "components": [base, *data, *libraries],
        "dependencies": [
            {"ref": _SUBJECT, "dependsOn": [_BASE, *(one["bom-ref"] for one in [*data, *libraries])]},
        ],
    }


def _library(name: str, version: str, before: str = "") -> dict[str, Any]:
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
    return {"type": "library", "bom-ref": f"{before}{purl}", "name": name, "version": version, "purl": purl}


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}
