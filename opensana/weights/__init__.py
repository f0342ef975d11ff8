"""Weights on disk: safetensors files, rename tables, and where a model lives."""
