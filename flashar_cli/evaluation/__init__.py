"""How good a model's images are, and how well it predicts."""
