"""vLLM's internals: the only package that reads, calls or replaces a name that vLLM does not document.

Each file has one subject, and each function touches few names. A docstring lists them after "Touches:", and says after "Without it:" what
would remain if a new vLLM no longer had them. All names were read in vLLM 0.32.0. tests/unit/engine/vllm/test_contract.py reads vLLM again
and names what has changed.

- `requests`: a request in vLLM's front end: its prompt, its outputs, its tokens and its end
- `request_sender`: a prompt on its way to the engine
- `image_inputs`: the images of a prompt as the engine takes them
- `output_reader`, `output_processor`, `detokenizer`: the tokens of plain streams, from the engine's socket to their text
- `health`: whether the engine lives, and its processes
- `launch`: the start of the engine
- `engine_process`: the engine's process, before vLLM creates it
- `model`: what vLLM knows of its model: the tokens of an image, and the quantizations
- `lora`: how vLLM reads the files of a LoRA adapter
- `metrics`: vLLM's metrics, and the histograms of prometheus_client behind them
- `seeds`, `named_tokens`, `cpu_worker`: seeds on a CPU, log probabilities of the tokens that a request names, and FP8 weights on a CPU
"""
