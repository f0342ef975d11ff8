"""emoji-256 in figures: what it reconstructs, draws, colours and combines."""
