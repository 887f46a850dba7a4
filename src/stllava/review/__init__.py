"""People in the loop: what readers are asked about, what they say, and what comes of it.

`tasks` draws verdicts of a round into a review folder, `items` a benchmark's answers or a policy's questions; `vote_log` keeps
what each reader does, `readings` says which votes stand, `votes_check` what they say of the expert, `items_check` what they say
of rules and questions, and `overrides` what pairs are made of them.
"""
