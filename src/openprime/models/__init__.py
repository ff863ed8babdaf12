"""Language models: loading, saving, token log-probabilities, and a tiny one made on the spot."""
