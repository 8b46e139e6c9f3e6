"""Chat about images with Ollama's Python package, whole and as a stream: python examples/ollama_chat.py [IMAGE ...]"""

import os
import sys

from ollama import Client

client = Client(os.environ.get("LLAVA_URL", "http://127.0.0.1:8000"))
model = client.list().models[0].model or ""
paths = sys.argv[1:] or ["examples/pictures/first.png"]

messages = [{"role": "user", "content": "Describe this image.", "images": paths}]
answer = client.chat(model, messages, options={"temperature": 0})
print(answer.message.content, f"[{answer.done_reason}, {answer.prompt_eval_count} + {answer.eval_count} tokens]")

messages += [answer.message.model_dump(), {"role": "user", "content": "What color is the top left?"}]
for part in client.chat(model, messages, options={"temperature": 0}, stream=True):
    print(part.message.content, end="", flush=True)
print()
