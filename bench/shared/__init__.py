"""What several benches share: measuring, and the models that are measured."""
