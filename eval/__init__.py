"""Measuring samplers: metrics, extractors, generation at scale, benchmarks and their reports."""
