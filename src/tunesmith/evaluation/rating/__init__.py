"""Blind comparison of two candidates' answers by people: pairs, ratings, agreement, win rate."""

from tunesmith.evaluation.rating.agreement import (
    Agreement,
    chance_p_value,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
)
from tunesmith.evaluation.rating.of_run import (
    choose_candidates,
    pairs_of,
    rating_log,
    ratings_path,
    write_summary,
)
from tunesmith.evaluation.rating.pairs import Pair, answers_sha256, read_pairs, stored_candidates
from tunesmith.evaluation.rating.plan import Plan, make_plan, open_pairs
from tunesmith.evaluation.rating.preferences import (
    JUDGE_FILE,
    PEOPLE_FILE,
    Preference,
    preference_from,
    read_preferences,
)
from tunesmith.evaluation.rating.ratings import (
    BOTH_BAD,
    RATINGS_FILE,
    TIE,
    Rating,
    RatingLog,
    Ratings,
    Settings,
    rater_name,
    read_ratings,
)
from tunesmith.evaluation.rating.summary import RatingSummary, human_labels, summarise
from tunesmith.evaluation.rating.win_rate import Outcome, WinRate, win_rate

__all__ = [
    "BOTH_BAD",
    "JUDGE_FILE",
    "PEOPLE_FILE",
    "RATINGS_FILE",
    "TIE",
    "Agreement",
    "Outcome",
    "Pair",
    "Plan",
    "Preference",
    "Rating",
    "RatingLog",
    "RatingSummary",
    "Ratings",
    "Settings",
    "WinRate",
    "answers_sha256",
    "chance_p_value",
    "choose_candidates",
    "cohen_kappa",
    "fleiss_kappa",
    "human_labels",
    "krippendorff_alpha",
    "make_plan",
    "open_pairs",
    "pairs_of",
    "preference_from",
    "rater_name",
    "rating_log",
    "ratings_path",
    "read_pairs",
    "read_preferences",
    "read_ratings",
    "stored_candidates",
    "summarise",
    "win_rate",
    "write_summary",
]
