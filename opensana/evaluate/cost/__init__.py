"""What a picture costs: operations, bytes and parameters of any model, without its weights."""
