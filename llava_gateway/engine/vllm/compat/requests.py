"""A request in vLLM's front end, which is the half of `AsyncLLM` that runs in the gateway's process: its prompt, outputs, tokens and end.

Read in vLLM 0.32.0.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llava_gateway.types import PreparedImage, PreparedVideo

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState


def cache_names(media: Sequence[PreparedImage | PreparedVideo], cache_salt: str | None) -> list[str]:
    """Return the names under which vLLM caches images or videos.

    `cache_salt`: keeps a prompt and its media apart from others in vLLM's caches. vLLM itself separates only the prompts, so the salt
    becomes a part of the names, too.
    """
    return [f"{medium.digest}-{cache_salt}" if cache_salt else medium.digest for medium in media]


async def process_media(
    renderer: Any,
    token_ids: Sequence[int],
    images: Sequence[PreparedImage],
    cache_salt: str | None = None,
    *,
    videos: Sequence[PreparedVideo] = (),
    skip_cache: bool = False,
) -> Any:
    """Return a prompt with images and videos as `AsyncLLM.add_request` takes it, processed in vLLM's own thread.

    `renderer`: of vLLM, `AsyncLLM.renderer`. `token_ids`: one image token for each image, and one video token for each video.
    `cache_salt`: as for `cache_names`. `skip_cache`: process the media even if vLLM knows them, and do not remember them. The prompt
    is then not for the engine.

    Touches: `BaseRenderer.render_cmpl_async`.
    Without it: `AsyncLLM.add_request` takes the dictionary below as it is, and processes it itself.
    """
    prompt: dict[str, Any] = {"prompt_token_ids": token_ids, "multi_modal_data": {}, "multi_modal_uuids": {}}
    if images:
        prompt["multi_modal_data"]["image"] = [image.pixels for image in images]
        prompt["multi_modal_uuids"]["image"] = cache_names(images, cache_salt)
    if videos:
        prompt["multi_modal_data"]["video"] = [video.frames for video in videos]
        prompt["multi_modal_uuids"]["video"] = cache_names(videos, cache_salt)
    if cache_salt:
        prompt["cache_salt"] = cache_salt
    (rendered,) = await renderer.render_cmpl_async([prompt], skip_mm_cache=skip_cache)
    return rendered


def redirect_outputs(collector: "RequestOutputCollector", put: Callable[["RequestOutput | Exception"], None]) -> None:
    """Have vLLM's output loop call `put` with each output of a request. An output that has already arrived is handed over at once.

    vLLM itself stores an output and wakes the task that waits for it. The direct call saves that wake-up for every token.
    `put`: must not raise. An error would end vLLM's output loop, and all requests with it.

    Touches: `RequestOutputCollector.put`, which is replaced for this request, and `RequestOutputCollector.output`.
    Without it: `AsyncLLM.generate` yields the same outputs, and takes more of the event loop's time.
    """
    early, collector.output = collector.output, None
    collector.put = put
    if early:
        put(early)


def discard_outputs(collector: "RequestOutputCollector") -> None:
    """Drop all further outputs of a request, such as those of its other choices after an error.

    Touches: `RequestOutputCollector.put`, which is replaced for this request.
    Without it: unread outputs stay in memory until the request has ended.
    """
    collector.put = lambda output: None


async def abort(engine: "AsyncLLM", collector: "RequestOutputCollector") -> None:
    """End a request in vLLM's front end and in its engine.

    Touches: `RequestOutputCollector.request_id`, vLLM's own name for the request, and the argument `internal` of `AsyncLLM.abort`.
    Without it: `AsyncLLM.abort` takes the name that the request was added under.
    """
    await engine.abort(collector.request_id, internal=True)


def skip_token_texts(engine: "AsyncLLM", name: str) -> None:
    """Have vLLM leave out the text of each token in the log probabilities of a request that was just added.

    vLLM decodes these tokens on the event loop, one by one: twenty for each of a hundred answers take 50 ms in every step. The
    texts are not needed, because the gateway's own tokenizer has the tokens' exact bytes.

    Touches: the names of `_states`, `RequestState.logprobs_processor` and `LogprobsProcessor.tokenizer`.
    Without it: the same answers, and a slower event loop.
    """
    for state in _states(engine, name):
        if state.logprobs_processor:
            state.logprobs_processor.tokenizer = None


def generated_tokens(engine: "AsyncLLM", name: str) -> int:
    """Return the number of tokens that a request has generated so far, over all its choices.

    vLLM reports the length of an answer that is not streamed only with the whole answer, so an aborted one would be counted as empty.
    The count includes running choices, and ended choices that wait for the others.

    Touches: the names of `_states`, `RequestState.detokenizer`, `IncrementalDetokenizer.num_output_tokens`, `RequestState.parent_req` and
    `ParentRequest.output_aggregator`.
    Without it: stream every request inside the gateway, and count the tokens as they come.
    """
    states = _states(engine, name)
    tokens: int = sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer)
    parents = {id(state.parent_req): state.parent_req for state in states if state.parent_req}
    return tokens + sum(len(choice.token_ids) for parent in parents.values() for choice in parent.output_aggregator if choice)


def _states(engine: "AsyncLLM", name: str) -> "list[RequestState]":
    """Return vLLM's records of a request: one for each choice that still runs.

    `name`: the name that the request was added under.

    Touches: `AsyncLLM.output_processor`, `OutputProcessor.external_req_ids` and `OutputProcessor.request_states`.
    """
    processor = engine.output_processor
    return [processor.request_states[each] for each in processor.external_req_ids.get(name, ()) if each in processor.request_states]
