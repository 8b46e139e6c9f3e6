"""Original LLaVA checkpoints, as LLaVA's own code writes and reads them, to the layout of the hub's `llava-hf` models, which is served."""
