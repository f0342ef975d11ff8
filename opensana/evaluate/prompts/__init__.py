"""Whether pictures show what their prompts ask for: GenEval and DPG-Bench."""
