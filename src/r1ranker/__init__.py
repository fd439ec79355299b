"""Train a language model to rank anything by reinforcement learning, and rank with it."""
