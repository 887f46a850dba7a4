"""People in the loop: which verdicts readers are asked about, what they say, and what comes of it.

`tasks` draws verdicts of a round into a review folder, `vote_log` keeps what each reader does, `readings` says which votes
stand, `votes_check` what they say of the expert, and `overrides` what pairs are made of them.
"""
