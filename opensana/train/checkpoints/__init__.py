"""What a run keeps: checkpoints, what resumes from them, and exports."""
