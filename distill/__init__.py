"""Samplers that learn from better ones, and networks that learn for samplers."""
