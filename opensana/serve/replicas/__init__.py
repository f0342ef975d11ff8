"""More than one worker: replicas on Ray Serve."""
