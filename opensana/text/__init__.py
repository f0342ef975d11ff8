"""Prompts to text states (paper 2.3): a decoder-only language model, told first what to do."""
