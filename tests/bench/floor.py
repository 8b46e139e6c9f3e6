"""The cost of vLLM's engine client AsyncLLM without HTTP: a lower bound for servers that use it. Prints JSON with the rows of text.py."""

import argparse
import asyncio
import json
import os
import time
import uuid
from pathlib import Path

from bench.peers import FLAGS, long_checkpoint
from bench.text import STREAMS, TOKENS, stream_row

from llava_gateway.engine.vllm.launch import ENVIRONMENT


async def measure(checkpoint: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Return the figures of each number of streams. `checkpoint`: its directory. `seconds`: the duration of each load."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    parser = FlexibleArgumentParser()
    AsyncEngineArgs.add_cli_args(parser)
    arguments = parser.parse_args(["--model", str(checkpoint), *FLAGS, "--distributed-executor-backend", "uni"])
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(arguments))
    params = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA)

    async def stream(number: int) -> int:
        prompt = tokens_input([1, 300 + number % 300, *range(10, 30)])
        tokens = 0
        async for output in engine.generate(prompt, params, uuid.uuid4().hex):
            tokens += len(output.outputs[0].token_ids)
        return tokens

    async def client(deadline: float) -> int:
        tokens = 0
        while time.monotonic() < deadline:
            tokens += await stream(tokens)
        return tokens

    await stream(0)
    rows = {}
    for streams in STREAMS:
        start, before = time.perf_counter(), time.process_time()
        tokens = sum(await asyncio.gather(*(client(time.monotonic() + seconds) for _ in range(streams))))
        cpu, wall = time.process_time() - before, time.perf_counter() - start
        rows[stream_row(streams)] = {"front end CPU us per token": cpu / tokens * 1e6, "tokens/s": tokens / wall}
    engine.shutdown()
    return rows


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=10)
    os.environ |= ENVIRONMENT | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) - 1))}
    with long_checkpoint() as folder:
        print(json.dumps(asyncio.run(measure(folder, options.parse_args().seconds))))
