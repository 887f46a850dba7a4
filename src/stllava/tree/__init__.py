"""The tree of an image: its prompt prefix, the questions about it and their answers, as one sequence and one forward."""
