"""Describe an image with text-generation-webui's API: python examples/webui.py [IMAGE]"""

import base64
import os
import sys
from pathlib import Path

import httpx

server = os.environ.get("LLAVA_URL", "http://127.0.0.1:8000")
path = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/pictures/first.png")
image = f'<img src="data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}">'
greedy = {"do_sample": False, "repetition_penalty": 1.0}


def post(endpoint: str, request: dict) -> dict:
    response = httpx.post(f"{server}/api/v1/{endpoint}", json=request, timeout=60)
    if response.is_error:
        sys.exit(f"{response.status_code}: {response.json()['error']['message']}")
    return response.json()


print("model:", httpx.get(f"{server}/api/v1/model").json()["result"])

prompt = f"USER: {image}\nDescribe this image. ASSISTANT:"  # in the form of the model's chat template
print("tokens:", post("token-count", {"prompt": prompt})["results"][0]["tokens"])
answer = post("generate", {"prompt": prompt, "max_new_tokens": 200, "stopping_strings": ["USER:"], **greedy})
print("generate:", answer["results"][0]["text"].strip())

history: dict[str, list[list[str]]] = {"internal": [], "visible": []}
for question in (f"{image}\nDescribe this image.", "What color is the top left?"):
    request = {"user_input": question, "history": history, "mode": "instruct", "instruction_template": "LLaVA-v1", **greedy}
    history = post("chat", request)["results"][0]["history"]
    print("chat:", history["visible"][-1][1])
