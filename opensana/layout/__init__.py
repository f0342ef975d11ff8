"""The published model folder: its parts, what it says of itself, reading and writing it.

    model_index.json, scheduler/, transformer/, vae/, text_encoder/, tokenizer/

A folder may name its text encoder in model_index.json instead of holding it, and may hold a
few-step transformer beside its own, in transformer_sprint/.
"""
