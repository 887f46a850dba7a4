"""Prompts as files: what an expert that is a model is told."""
