"""Prompts to prompt embeddings: a decoder-only LLM that reads an instruction first (paper 2.3)."""
