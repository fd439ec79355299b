"""Training: supervised start, rollouts, advantages, losses, PPO; verl on Ray past one machine; publishing a model."""
