"""What is asked for: orders, the queue, who is next, and what is kept of it."""
