"""Flow matching on cached features: whole models, LoRA, ControlNet."""
