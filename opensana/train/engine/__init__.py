"""What every training shares: the loop, randomness, processes, precision, averages."""
