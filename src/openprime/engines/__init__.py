"""Inference engines: prompts in, groups of sampled responses with their log-probabilities out."""
