"""A model behind HTTP: one worker that draws in mixed batches, a bounded queue, and its APIs."""
