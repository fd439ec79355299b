"""Training: supervised start, rollouts, algorithms (one a file), losses, PPO; verl on Ray past one machine; publishing a model."""
