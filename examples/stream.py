"""Stream an answer with the OpenAI SDK, then ask again about the same image: python examples/stream.py [IMAGE]"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id

path = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/pictures/first.png")
image = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
messages = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "Describe this image."}],
    }
]


def ask() -> str:
    """Print the answer to the messages while it arrives, and return it."""
    answer = ""
    stream = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=200, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                answer += choice.delta.content
                print(choice.delta.content, end="", flush=True)
        if chunk.usage:
            print(f"  [{chunk.usage.prompt_tokens} prompt tokens, {chunk.usage.completion_tokens} completion tokens]")
    return answer


messages.append({"role": "assistant", "content": ask()})
messages.append({"role": "user", "content": "What color is the top left?"})
ask()
