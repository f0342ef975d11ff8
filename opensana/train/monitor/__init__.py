"""What a run tells of itself: metrics, samples, lists and curves."""
