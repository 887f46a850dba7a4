"""How a policy learns: sets of trees, losses of log-probabilities, the trainer, and what stops it."""
