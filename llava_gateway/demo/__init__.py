"""The demo model: a tiny LLaVA that tells the truth about pictures of coloured quarters. See MODEL_CARD.md."""

from pathlib import Path

MODEL_NAME = "llava-demo"
CHECKPOINT = Path(__file__).parent / "checkpoint"
ENGINE_FLAGS = ("--dtype", "float32", "--kv-cache-memory-bytes", str(128 << 20), "--mm-processor-cache-gb", "0.25")
"""128 MiB of KV cache hold ten chats at full context, and 256 MiB some 190 images; left alone, vLLM would take gigabytes for each."""
