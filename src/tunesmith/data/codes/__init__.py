"""Every finding the data room can report: the only place where severity, reason and remedy are written.

An *error* means a row or file could not be understood (unreadable rows are left out and listed), a *warning* that it
was understood but will hurt or was left out on purpose, an *info* that it is worth knowing. Codes are stable: scripts
may match on them. Each file of this package holds the codes of one subject.
"""

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.chat import CHAT
from tunesmith.data.codes.code import Code
from tunesmith.data.codes.evals import EVALS
from tunesmith.data.codes.examples import EXAMPLES
from tunesmith.data.codes.files import FILES
from tunesmith.data.codes.hosted import HOSTED
from tunesmith.data.codes.judged import JUDGED
from tunesmith.data.codes.labels import LABELS
from tunesmith.data.codes.leaks import LEAKS
from tunesmith.data.codes.personal import PERSONAL
from tunesmith.data.codes.rows import ROWS
from tunesmith.data.codes.texts import TEXTS

SUBJECTS = (FILES, ROWS, CHAT, JUDGED, EVALS, EXAMPLES, LABELS, LEAKS, TEXTS, PERSONAL, HOSTED)
CODES: Mapping[str, Code] = MappingProxyType({name: code for subject in SUBJECTS for name, code in subject.items()})

__all__ = ["CODES", "SUBJECTS", "Code"]
