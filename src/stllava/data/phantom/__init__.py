"""Synthetic phantoms: images, questions and answers drawn from a truth that is known."""
