"""Requests that are sent without vLLM's own code reach the engine whole, in order, and with the parameters that vLLM has completed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zmq
from helpers.engine_outputs import params, texts, tokenizer
from vllm.inputs import mm_input, tokens_input
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange
from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from llava_gateway.engine.vllm.compat.output_processor import TextOutputProcessor
from llava_gateway.engine.vllm.compat.request_sender import MAX_COPIED, RequestSender

pytestmark = pytest.mark.slow


class Engine:
    """A front end whose socket leads to this test."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        router, self._dealer = self._context.socket(zmq.ROUTER), self._context.socket(zmq.DEALER)
        router.bind("inproc://inputs")
        self._dealer.setsockopt(zmq.IDENTITY, b"engine")
        self._dealer.connect("inproc://inputs")
        self._dealer.send(b"hello")
        router.recv_multipart()
        self.dead = False
        core = SimpleNamespace(
            client_index=3,
            core_engine=b"engine",
            encoder=MsgpackEncoder(),
            input_socket=SimpleNamespace(underlying=router.underlying),
            ensure_alive=lambda: None,
        )
        self._router = router
        self.output_processor = TextOutputProcessor.replace(OutputProcessor(tokenizer(), log_stats=True), texts())
        self.front_end: Any = SimpleNamespace(
            engine_core=core,
            errored=False,
            input_processor=SimpleNamespace(assign_request_id=InputProcessor.assign_request_id),
            output_processor=self.output_processor,
            check_admission=lambda request_id: None,
        )

    def received(self) -> EngineCoreRequest:
        kind, *frames = self._dealer.recv_multipart(copy=False)
        assert kind.bytes == EngineCoreRequestType.ADD.value
        request: EngineCoreRequest = MsgpackDecoder(EngineCoreRequest).decode(frames)
        return request

    def close(self) -> None:
        for socket in (self._router, self._dealer):
            socket.close(0)
        self._context.term()


@pytest.fixture
def engine() -> Any:
    made = Engine()
    yield made
    made.close()


def test_text_prompt_reaches_the_engine(engine: Engine) -> None:
    sampling = params(temperature=0.5)
    collector = RequestSender(engine.front_end).add_request("name", tokens_input([1, 300], cache_salt="salt"), sampling)
    request = engine.received()
    assert (request.prompt_token_ids, request.mm_features, request.cache_salt) == ([1, 300], None, "salt")
    assert (request.external_req_id, request.client_index) == ("name", 3)
    assert request.request_id == collector.request_id != "name"
    assert request.sampling_params == sampling
    assert list(engine.output_processor.request_states) == [collector.request_id]


def test_images_reach_the_engine_and_known_ones_without_their_pixels(engine: Engine) -> None:
    (item,) = MultiModalKwargsItems.from_hf_inputs(
        {"pixel_values": torch.ones(1, 3, 336, 336)},
        {"pixel_values": MultiModalFieldConfig.batched("image")},
    )["image"]
    places = [PlaceholderRange(offset=1, length=2), PlaceholderRange(offset=3, length=2)]
    rendered = mm_input([1, 9, 9, 9, 9], MultiModalKwargsItems({"image": [item, None]}), {"image": ["new", "known"]}, {"image": places})
    RequestSender(engine.front_end).add_request("name", rendered, params())
    features = engine.received().mm_features
    assert features
    assert [(feature.identifier, feature.mm_hash, feature.mm_position) for feature in features] == [
        ("new", "new", places[0]),
        ("known", "known", places[1]),
    ]
    assert features[0].data
    assert torch.equal(features[0].data["pixel_values"].data, item["pixel_values"].data)
    assert features[1].data is None


def test_images_and_videos_reach_the_engine_in_the_order_of_the_prompt(engine: Engine) -> None:
    """The engine's scheduler expects them sorted by their places."""
    names = {"image": ["first", "last"], "video": ["middle"]}
    places = {
        "image": [PlaceholderRange(offset=1, length=2), PlaceholderRange(offset=6, length=2)],
        "video": [PlaceholderRange(offset=3, length=3)],
    }
    (item,) = MultiModalKwargsItems.from_hf_inputs(
        {"pixel_values_videos": torch.arange(2 * MAX_COPIED // 4, dtype=torch.float32).view(1, 2, -1)},
        {"pixel_values_videos": MultiModalFieldConfig.batched("video")},
    )["video"]
    rendered = mm_input([1] * 8, MultiModalKwargsItems({"image": [None, None], "video": [item]}), names, places)
    RequestSender(engine.front_end).add_request("name", rendered, params())
    features = engine.received().mm_features
    assert features
    assert [(feature.modality, feature.identifier) for feature in features] == [("image", "first"), ("video", "middle"), ("image", "last")]
    assert features[1].data
    assert torch.equal(features[1].data["pixel_values_videos"].data, item["pixel_values_videos"].data)


def test_requests_keep_their_order(engine: Engine) -> None:
    sender = RequestSender(engine.front_end)
    for number in range(20):
        sender.add_request(f"r{number}", tokens_input([1, 300 + number]), params())
    assert [engine.received().external_req_id for _ in range(20)] == [f"r{number}" for number in range(20)]


def test_dead_engine_gets_no_request(engine: Engine) -> None:
    engine.front_end.errored = True
    with pytest.raises(EngineDeadError):
        RequestSender(engine.front_end).add_request("name", tokens_input([1]), params())
    assert not engine.output_processor.request_states


def test_full_engine_refuses_before_anything_is_sent(engine: Engine) -> None:
    def full(request_id: str) -> None:
        raise OverflowError

    engine.front_end.check_admission = full
    with pytest.raises(OverflowError):
        RequestSender(engine.front_end).add_request("name", tokens_input([1]), params())
    assert not engine.output_processor.request_states
