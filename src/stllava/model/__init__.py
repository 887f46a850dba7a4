"""Policies: a transformers image-text-to-text model with its processor, built, loaded, prompted and trained."""
