"""Training: supervised start, rollouts, advantages, losses, PPO."""
