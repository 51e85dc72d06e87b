"""The folder that an export is kept in, as `pull` writes it and `read_export` reads it.

```
export/
  export.json                     where it was pulled from, when, and what could not be had
  files.json                      every file's object
  files/<file id><ending>         its bytes
  jobs/<job id>/job.json          the job's object, written last: with an end in it, the job is complete
  jobs/<job id>/events.jsonl      oldest first
  jobs/<job id>/checkpoints.json
  models.json                     tuned models only
  evals/<eval id>/eval.json
  evals/<eval id>/runs/<run id>.json
  evals/<eval id>/runs/<run id>-items.jsonl
  completions.jsonl               stored chat completions, with their messages under `messages`
```

Whoever saved JSON by other means can put it anywhere in the folder: objects are known by their `object` field, alone,
in a list, one on each line, or as the page that the API answered with. Bytes of a file are found by its id in a name,
or by the name that it was uploaded under.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

ABOUT, FILES_LIST, MODELS, COMPLETIONS = "export.json", "files.json", "models.json", "completions.jsonl"
_LONGEST = 120


def name_of(id: str) -> str:
    """An id as the name of a file or folder: whatever a service calls its objects, it leads nowhere else."""
    name = quote(id, safe="").replace(".", "%2E")
    return name if 0 < len(name) <= _LONGEST else hashlib.sha256(id.encode()).hexdigest()


def file_path(folder: Path, id: str, filename: str) -> Path:
    """Where the bytes of a file lie."""
    ending = Path(filename).suffix
    return folder / "files" / (name_of(id) + (ending if ending.isascii() and ending[1:].isalnum() else ""))


def job_folder(folder: Path, id: str) -> Path:
    return folder / "jobs" / name_of(id)


def eval_folder(folder: Path, id: str) -> Path:
    return folder / "evals" / name_of(id)
