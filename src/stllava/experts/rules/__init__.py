"""Experts that know the answer: from the truth of drawn images, or from reference answers."""
