"""Describe pictures as SambaStudio's clients do, whole and as a stream: python examples/sambastudio.py [PICTURE ...]"""

import base64
import json
import os
import sys
from pathlib import Path

import httpx

predict = f"{os.environ.get('LLAVA_URL', 'http://127.0.0.1:8000')}/api/predict/generic"
headers = {"key": os.environ.get("LLAVA_KEY", "none")}
params = {
    "do_sample": {"type": "bool", "value": "false"},
    "max_tokens_to_generate": {"type": "int", "value": "200"},
    "preprocessing": {"type": "str", "value": "llava-hf"},
}
pictures = sys.argv[1:] or ["examples/pictures/first.png", "examples/pictures/second.jpg"]
instances = [
    {"prompt": "Describe this image.", "image_content": base64.b64encode(Path(picture).read_bytes()).decode()} for picture in pictures
]

answer = httpx.post(f"{predict}/my-project/my-endpoint", headers=headers, json={"instances": instances, "params": params}, timeout=120)
if answer.is_error:
    sys.exit(f"{answer.status_code}: {answer.json()['detail']}")
for prediction in answer.json()["predictions"]:
    print(prediction["completion"], f"[{prediction['stop_reason']}, {prediction['total_tokens_count']} tokens]")

body = {"instance": instances[0], "params": params}
with httpx.stream("POST", f"{predict}/stream/my-project/my-endpoint", headers=headers, json=body, timeout=120) as stream:
    for line in stream.iter_lines():
        chunk = json.loads(line)
        if "error" in chunk:
            sys.exit(f"{chunk['status_code']}: {chunk['error']['message']}")
        (response,) = chunk["result"]["responses"]
        print(response["stream_token"], end="", flush=True)
print(f" [{response['time_to_first_token']:.2f} s to the first token]")
