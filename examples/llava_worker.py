"""Ask as LLaVA's own web server does, controller first, then worker: python examples/llava_worker.py [PICTURE]"""

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)

controller = os.environ.get("LLAVA_URL", "http://127.0.0.1:8000")
picture = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/pictures/first.png")


def chunks(response: httpx.Response) -> Iterator[dict]:
    """What stands between the NULs; nothing may, to say that the worker still works."""
    rest = b""
    for data in response.iter_bytes():
        *whole, rest = (rest + data).split(b"\0")
        yield from (json.loads(chunk) for chunk in whole if chunk)


httpx.post(f"{controller}/refresh_all_workers").raise_for_status()
models = httpx.post(f"{controller}/list_models").json()["models"]
print("models:", ", ".join(models))
worker = httpx.post(f"{controller}/get_worker_address", json={"model": models[0]}).json()["address"]
print("worker:", worker)

prompt = f"{SYSTEM} USER: <image>\nDescribe this image. ASSISTANT:"  # the form of LLaVA's conversation template llava_v1
asked = {
    "model": models[0],
    "prompt": prompt,
    "images": [base64.b64encode(picture.read_bytes()).decode()],
    "temperature": 0.0,
    "max_new_tokens": 512,
    "stop": "</s>",
}
shown = ""
with httpx.stream("POST", f"{worker}/worker_generate_stream", json=asked, timeout=60) as response:
    for chunk in chunks(response):
        if chunk["error_code"]:
            sys.exit(f"{chunk['text']} (error_code: {chunk['error_code']})")
        answer = chunk["text"][len(prompt) :].strip()
        print(answer[len(shown) :], end="", flush=True)
        shown = answer
print()
