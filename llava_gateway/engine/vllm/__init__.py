"""vLLM in this process (`AsyncLLM`). No other package imports vLLM."""
