"""What draws: the worker's loop, and the model behind it."""
