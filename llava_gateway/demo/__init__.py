"""The demo model: a tiny LLaVA that describes images of four coloured quarters correctly. See MODEL_CARD.md."""

from pathlib import Path

MODEL_NAME = "llava-demo"
CHECKPOINT = Path(__file__).parent / "checkpoint"
ENGINE_FLAGS = ("--dtype", "float32", "--kv-cache-memory-bytes", str(128 << 20), "--mm-processor-cache-gb", "0.25")
"""128 MiB of KV cache hold ten chats of full context length, and 256 MiB hold about 190 images. vLLM's defaults are gigabytes for each."""
