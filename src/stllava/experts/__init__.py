"""Those who judge answers."""
