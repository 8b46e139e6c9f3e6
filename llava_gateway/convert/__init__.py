"""Converts original LLaVA checkpoints, in the layout of LLaVA's own code, to the layout of the hub's `llava-hf` models, which is served."""
