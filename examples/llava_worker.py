"""Describe an image as LLaVA's own web server does, through the controller and the worker: python examples/llava_worker.py [IMAGE]"""

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
path = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/pictures/first.png")


def chunks(response: httpx.Response) -> Iterator[dict]:
    """Yield the chunks of a stream. A NUL ends each chunk; empty chunks keep the connection alive."""
    rest = b""
    for data in response.iter_bytes():
        *complete, rest = (rest + data).split(b"\0")
        yield from (json.loads(chunk) for chunk in complete if chunk)


httpx.post(f"{controller}/refresh_all_workers").raise_for_status()
models = httpx.post(f"{controller}/list_models").json()["models"]
print("models:", ", ".join(models))
worker = httpx.post(f"{controller}/get_worker_address", json={"model": models[0]}).json()["address"]
print("worker:", worker)

prompt = f"{SYSTEM} USER: <image>\nDescribe this image. ASSISTANT:"  # LLaVA's conversation template llava_v1
request = {
    "model": models[0],
    "prompt": prompt,
    "images": [base64.b64encode(path.read_bytes()).decode()],
    "temperature": 0.0,
    "max_new_tokens": 512,
    "stop": "</s>",
}
printed = ""
with httpx.stream("POST", f"{worker}/worker_generate_stream", json=request, timeout=60) as response:
    for chunk in chunks(response):
        if chunk["error_code"]:
            sys.exit(f"{chunk['text']} (error_code: {chunk['error_code']})")
        answer = chunk["text"][len(prompt) :].strip()
        print(answer[len(printed) :], end="", flush=True)
        printed = answer
print()
