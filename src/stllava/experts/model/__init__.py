"""Experts that are models: what is asked of them, what is kept of it, and how verdicts are read."""
