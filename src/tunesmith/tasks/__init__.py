"""Tasks: how a model is asked, how its answers are read and scored."""

from tunesmith.tasks.classification import Classification
from tunesmith.tasks.conversation import asking_conversation, training_conversation
from tunesmith.tasks.extraction import Extraction
from tunesmith.tasks.fit import fit_task, restore_task, task_record
from tunesmith.tasks.generation import Generation
from tunesmith.tasks.metrics import quick_score
from tunesmith.tasks.types import Metric, Task

__all__ = [
    "Classification",
    "Extraction",
    "Generation",
    "Metric",
    "Task",
    "asking_conversation",
    "fit_task",
    "quick_score",
    "restore_task",
    "task_record",
    "training_conversation",
]
