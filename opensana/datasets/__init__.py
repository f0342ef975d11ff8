"""Data: prepared picture sets and the cached latents and text states that training reads."""
