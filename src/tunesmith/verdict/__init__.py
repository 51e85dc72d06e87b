"""The verdict: what things cost, which candidate to use, and the report that shows why."""

from tunesmith.verdict.benefits import Weights
from tunesmith.verdict.costs import TokenPrice, break_even, candidate_costs, total_cost
from tunesmith.verdict.decision import decide
from tunesmith.verdict.good_enough import good_enough
from tunesmith.verdict.headline import headline
from tunesmith.verdict.longer_prompts import PromptCost, prompt_costs
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.types import CandidateCost, Forgetting, Limits, Verdict, Volume

__all__ = [
    "CandidateCost",
    "Forgetting",
    "Limits",
    "PromptCost",
    "ReportData",
    "TokenPrice",
    "Verdict",
    "Volume",
    "Weights",
    "break_even",
    "candidate_costs",
    "decide",
    "good_enough",
    "headline",
    "prompt_costs",
    "total_cost",
]
