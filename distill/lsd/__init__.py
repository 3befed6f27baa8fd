"""Discrete samplers learned from better ones (LSD)."""

from .learn import LSDConfig, learn_jumps
from .models import ChainConfig, token_model

__all__ = ["ChainConfig", "LSDConfig", "learn_jumps", "token_model"]
