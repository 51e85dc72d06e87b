"""Graders: what says how good an answer is. `check_grader` tells what is wrong with one, `grade` uses it."""

from tunesmith.service.grading.checking import Where, all_texts, check_grader
from tunesmith.service.grading.grade import Grade, GradeError, grade, sample_of
from tunesmith.service.grading.shapes import Grader, Multi, read_grader

__all__ = [
    "Grade",
    "GradeError",
    "Grader",
    "Multi",
    "Where",
    "all_texts",
    "check_grader",
    "grade",
    "read_grader",
    "sample_of",
]
