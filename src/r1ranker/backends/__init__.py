"""Models that can be asked: transformers (default) and scripted (for tests and examples)."""
