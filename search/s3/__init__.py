"""S^3: solver schedules that a search finds, by what their samples are worth."""

from .archive import Archive, Entry, Proposal, Verdict
from .config import Measure, SearchConfig
from .judge import Judge, judge_of
from .predictor import Predictor, learn, tokens
from .run import Found, search

__all__ = [
    "Archive",
    "Entry",
    "Found",
    "Judge",
    "Measure",
    "Predictor",
    "Proposal",
    "SearchConfig",
    "Verdict",
    "judge_of",
    "learn",
    "search",
    "tokens",
]
