"""The verdict: what things cost, which candidate to use, and the report that shows why."""

from tunesmith.verdict.costs import break_even, candidate_costs
from tunesmith.verdict.decision import decide
from tunesmith.verdict.headline import headline
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.types import CandidateCost, Verdict

__all__ = ["CandidateCost", "ReportData", "Verdict", "break_even", "candidate_costs", "decide", "headline"]
