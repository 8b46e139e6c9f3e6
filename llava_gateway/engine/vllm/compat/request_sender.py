"""Sends prompts to the engine. Importing this file imports vLLM.

vLLM checks and completes the sampling parameters of every request, and sends it by zmq.asyncio. `RequestSender` takes parameters that vLLM
has checked and completed for an earlier request, and writes to the socket in the same call.

Read in vLLM 0.32.0.
"""

import time
from typing import TYPE_CHECKING, Any

import zmq
from vllm import SamplingParams
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import RequestOutputCollector

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


MAX_COPIED = 4 << 20
"""A larger tensor, in bytes, is not copied for the socket. The copy of a video would hold the event loop for 15 ms."""


class RequestSender:
    """Adds requests to an engine that `OutputReader` reads. Its methods run on the event loop.

    Touches: `AsyncLLM.errored`, `check_admission`, `input_processor` and `engine_core`; `InputProcessor.assign_request_id`;
    `OutputProcessor.add_request`; `MPClient.encoder`, `core_engine`, `ensure_alive`, `input_socket` and `client_index`.
    Without it: `AsyncLLM.add_request` does the same, and takes more of the event loop's time.
    """

    def __init__(self, engine: "AsyncLLM") -> None:
        self._engine = engine
        self._core = engine.engine_core
        self._socket: zmq.Socket[bytes] = zmq.Socket.shadow(self._core.input_socket.underlying)
        self._socket.copy_threshold = MAX_COPIED

    def add_request(self, name: str, rendered: Any, params: SamplingParams) -> RequestOutputCollector:
        """Send a request for one choice, and return the collector of its outputs, as `AsyncLLM.add_request` does.

        `rendered`: the input, from `tokens_input`, `ImageInputs.make` or `process_media`. It fits the context, and each image and video
        fits the encoder's cache. `params`: those of an earlier request that `AsyncLLM.add_request` has accepted, with `max_tokens`. Raises
        EngineDeadError, or GracefulHTTPError if the engine has too many requests.
        """
        engine, core = self._engine, self._core
        if engine.errored:
            raise EngineDeadError
        request = EngineCoreRequest(
            request_id=name,
            prompt_token_ids=rendered["prompt_token_ids"],
            mm_features=_features(rendered) if rendered["type"] == "multimodal" else None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=rendered.get("cache_salt"),
            data_parallel_rank=None,
            client_index=core.client_index,
        )
        engine.input_processor.assign_request_id(request)
        engine.check_admission(request_id=request.request_id)
        collector = RequestOutputCollector(params.output_kind, request.request_id)
        core.ensure_alive()
        message = (core.core_engine, EngineCoreRequestType.ADD.value, *core.encoder.encode(request))
        engine.output_processor.add_request(request, None, None, 0, collector)
        self._socket.send_multipart(message, zmq.NOBLOCK, copy=False)
        return collector


def _features(rendered: Any) -> list[MultiModalFeatureSpec]:
    """Return the images and videos of an input, in the order of the prompt."""
    features = [
        MultiModalFeatureSpec(data=item, modality=modality, identifier=name, mm_position=place, mm_hash=name)
        for modality, items in rendered["mm_kwargs"].items()
        for item, name, place in zip(items, rendered["mm_hashes"][modality], rendered["mm_placeholders"][modality], strict=True)
    ]
    return sorted(features, key=lambda feature: feature.mm_position.offset)
