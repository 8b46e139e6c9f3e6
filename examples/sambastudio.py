"""Describe images with SambaStudio's API, whole and as a stream: python examples/sambastudio.py [IMAGE ...]"""

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
paths = sys.argv[1:] or ["examples/pictures/first.png", "examples/pictures/second.jpg"]
instances = [{"prompt": "Describe this image.", "image_content": base64.b64encode(Path(path).read_bytes()).decode()} for path in paths]

response = httpx.post(f"{predict}/my-project/my-endpoint", headers=headers, json={"instances": instances, "params": params}, timeout=120)
if response.is_error:
    sys.exit(f"{response.status_code}: {response.json()['detail']}")
for prediction in response.json()["predictions"]:
    print(prediction["completion"], f"[{prediction['stop_reason']}, {prediction['total_tokens_count']} tokens]")

body = {"instance": instances[0], "params": params}
with httpx.stream("POST", f"{predict}/stream/my-project/my-endpoint", headers=headers, json=body, timeout=120) as stream:
    for line in stream.iter_lines():
        chunk = json.loads(line)
        if "error" in chunk:
            sys.exit(f"{chunk['status_code']}: {chunk['error']['message']}")
        (last,) = chunk["result"]["responses"]
        print(last["stream_token"], end="", flush=True)
print(f" [{last['time_to_first_token']:.2f} s to the first token]")
