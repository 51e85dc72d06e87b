"""Tasks: how a model is asked, how its answers are read and scored. docs/tasks.md lists them."""

from tunesmith.tasks.classification import Classification
from tunesmith.tasks.code import Code, pass_at_k, with_samples
from tunesmith.tasks.conversation import answer_message, asking_conversation, training_conversation
from tunesmith.tasks.custom import CustomMetric
from tunesmith.tasks.extraction import Extraction
from tunesmith.tasks.fit import fit_task, restore_task, task_record
from tunesmith.tasks.generation import Generation
from tunesmith.tasks.maths import Maths
from tunesmith.tasks.metrics import quick_score
from tunesmith.tasks.multi_label import MultiLabel
from tunesmith.tasks.ordinal import Ordinal
from tunesmith.tasks.question_answering import QuestionAnswering
from tunesmith.tasks.regression import Regression
from tunesmith.tasks.slices import Slice, slices_of
from tunesmith.tasks.summarisation import Summarisation
from tunesmith.tasks.text_to_sql import TextToSql
from tunesmith.tasks.token_classification import TokenClassification
from tunesmith.tasks.tool_calls import ToolCalls
from tunesmith.tasks.translation import Translation
from tunesmith.tasks.types import Metric, Task

__all__ = [
    "Classification",
    "Code",
    "CustomMetric",
    "Extraction",
    "Generation",
    "Maths",
    "Metric",
    "MultiLabel",
    "Ordinal",
    "QuestionAnswering",
    "Regression",
    "Slice",
    "Summarisation",
    "Task",
    "TextToSql",
    "TokenClassification",
    "ToolCalls",
    "Translation",
    "answer_message",
    "asking_conversation",
    "fit_task",
    "pass_at_k",
    "quick_score",
    "restore_task",
    "slices_of",
    "task_record",
    "training_conversation",
    "with_samples",
]
