"""What a model and a training step cost in arithmetic, time and memory."""
