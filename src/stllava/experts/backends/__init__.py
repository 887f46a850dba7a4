"""Where an expert that is a model runs: behind a chat API, behind a batch API, in this process, or in a script."""
