"""Training: supervised start, rollouts, algorithms, losses, PPO; verl on Ray past one machine; publishing a model."""
