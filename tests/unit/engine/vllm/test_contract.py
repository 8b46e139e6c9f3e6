"""Contracts with vLLM: each name of its internals that the package `compat` touches is still there, and means the same.

A failure says in a sentence what vLLM has changed. No engine is started: the tests read vLLM's source, its signatures and its objects.
"""

import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.internals import check_parameters

from llava_gateway.engine import vllm as package
from llava_gateway.engine.vllm.compat import launch, seeds
from llava_gateway.engine.vllm.launch import ENVIRONMENT, FLASHINFER

pytestmark = pytest.mark.slow

SOURCES = {
    "v1/worker/gpu_model_runner.py": {
        "def get_model(self) -> nn.Module:": "vLLM's model runner has no get_model",
        "self.sampler = Sampler(": "vLLM's model runner keeps its sampler elsewhere than in sampler",
        "gen.set_offset(gen.get_offset() - 4)": "vLLM no longer rewinds the generators of discarded rows; is cpu_worker.py still needed?",
        "self.input_batch.generators.get(int(i))": "vLLM rewinds generators that it finds elsewhere than in input_batch.generators",
        "self.discard_request_mask.np[:num_reqs]": "vLLM knows the rows to discard by another name than discard_request_mask",
    },
    "v1/worker/gpu_input_batch.py": {
        "self.generators: dict[int, torch.Generator] = {}": "input_batch.generators is no longer a dict by row",
        "            generators=self.generators,": "vLLM samples with another dict than input_batch.generators",
        "def num_reqs(self) -> int:": "input_batch has no num_reqs",
    },
    "v1/sample/sampler.py": {
        "logprob_token_ids_tensors = self.gather_specific_token_logprobs(": "vLLM gathers the named tokens by another call",
        "logprobs_tensors = logprob_token_ids_tensors": "vLLM keeps the kinds of log probabilities apart; is named_tokens.py still needed?",
    },
    "v1/worker/gpu_worker.py": {
        "def load_model(self, *, load_dummy_weights: bool = False) -> None:": "vLLM's worker loads its model with other options",
        "return self.model_runner.sample_tokens(grammar_output)": "vLLM's worker no longer samples in sample_tokens",
    },
    "v1/worker/cpu_worker.py": {
        "explicit_kv_cache_size = self.cache_config.kv_cache_memory_bytes": "the KV cache on a CPU has its size from something else",
        "class CPUWorker(Worker):": "vLLM's worker for CPUs has another name or base",
        "if self.use_v2_model_runner:": "vLLM chooses its model runner in another way",
    },
    "model_executor/layers/quantization/online/fp8.py": {
        "self.fp8_linear = init_fp8_linear_kernel(": "a layer keeps its kernel for FP8 elsewhere than in fp8_linear",
    },
    "model_executor/kernels/linear/scaled_mm/cpu.py": {
        "class CPUFp8BlockScaledMMKernel(": "the kernel for FP8 on CPUs has another name",
        "            list(self.weight_group_shape),\n            bias,": "vLLM passes another bias; is use_float_biases still needed?",
    },
    "platforms/cpu.py": {'if parallel_config.worker_cls == "auto":': "vLLM overrides the worker class that it was given"},
    "v1/engine/logprobs.py": {
        "            if self.tokenizer is None:\n                decoded_tokens = NONES": "log probabilities need a tokenizer now",
        "        context_token_ids = self._get_sampled_context_ids(self.logprobs)": "vLLM decodes log probabilities in another way",
    },
    "v1/engine/output_processor.py": {
        "self.request_states: dict[str, RequestState] = {}": "the front end keeps its requests elsewhere than in request_states",
        "self.external_req_ids: defaultdict[str, list[str]]": "the front end lists a request's choices elsewhere than in external_req_ids",
        "self.logprobs_processor = logprobs_processor": "a request's log probabilities are made elsewhere than in logprobs_processor",
        "self.parent_req = parent_req": "a choice knows its request by another name than parent_req",
        "self.detokenizer = detokenizer": "a choice counts its tokens elsewhere than in its detokenizer",
        "req_state.queue.put(request_output)": "the output loop hands outputs over by another call than RequestOutputCollector.put",
        "state.queue.put(e)": "the output loop hands errors over by another call than RequestOutputCollector.put",
    },
    "v1/engine/detokenizer.py": {
        "self.output_text += self.decode_next(new_token_id)": "the detokenizer asks for a token's text by another call than decode_next",
        "self.token_ids.append(new_token_id)": "the detokenizer no longer appends a token before it asks for its text",
        "token = self.stream.step(self.tokenizer, next_token_id)": "_protected_step reads other attributes than stream and tokenizer",
    },
    "v1/engine/core_client.py": {
        "if resources.output_queue_task is not None:": "vLLM starts to read the engine's messages although output_queue_task is set",
        "tasks = (self.output_queue_task, self.stats_update_task)": "vLLM no longer cancels output_queue_task when the engine has died",
        "frames = await output_socket.recv_multipart(copy=False)": "vLLM reads the engine's messages in another way",
        "(frames[0].buffer == EngineCoreProc.ENGINE_CORE_DEAD)": "the engine announces its death by another message",
        "if outputs.outputs or outputs.scheduler_stats:": "vLLM handles the engine's messages in another way",
    },
    "v1/engine/parallel_sampling.py": {
        "self.output_aggregator[completion_output.index] = completion_output": "ended choices wait elsewhere than in output_aggregator",
    },
    "v1/engine/async_llm.py": {
        "queue = RequestOutputCollector(params.output_kind, request.request_id)": "a request's collector has another class or name",
        "if self.output_handler is not None:": "vLLM starts its output loop although output_handler is set",
        "output_processor.update_scheduler_stats(outputs.scheduler_stats)": "vLLM's output loop does something else after a step",
        "mm_cache_stats=renderer.stat_mm_cache(),": "vLLM's output loop records other statistics",
        "mm_processor_cache.invalidate(mm_hash)": "vLLM's output loop forgets the images that the engine lacks in another way",
        "self.output_processor = OutputProcessor(": "AsyncLLM keeps its requests elsewhere than in output_processor",
        "self.renderer = ": "AsyncLLM renders prompts elsewhere than in renderer",
        "self.input_processor = InputProcessor(": "AsyncLLM has no input_processor, which knows the size of the largest video",
        "self.observability_config = ": "AsyncLLM has no observability_config, by which the gateway knows whether vLLM writes spans",
        "supported_tasks=await self.get_supported_tasks()": "AsyncLLM.add_request may wait before it sends; see ImageInputs.make",
        "return self.engine_core.resources.engine_dead or not self.is_running": "AsyncLLM.errored means something else",
        "return await self.engine_core.is_scheduler_paused_async()": "AsyncLLM.is_paused no longer asks the engine's process",
    },
    "v1/engine/input_processor.py": {
        "if num_embeds > self.mm_encoder_cache_size:": "mm_encoder_cache_size no longer bounds an image or a video",
    },
    "multimodal/processing/context.py": {
        "def supported_mm_limits(self) -> Mapping[str, int | None]:": "a model's kinds of media are elsewhere than in supported_mm_limits",
        "def allowed_mm_limits(self) -> Mapping[str, int]:": "the limits of media in a prompt are elsewhere than in allowed_mm_limits",
    },
    "v1/engine/utils.py": {
        "context = get_mp_context()": "vLLM gets the context for the engine's process by another call than get_mp_context",
        "context.Process(\n                    target=EngineCoreProc.run_engine_core,": "vLLM creates the engine's process differently",
        'else "EngineCore"': "vLLM gives its engine's process another name than EngineCore",
        launch.PROCESS_FAILED: "vLLM words the failure of its engine's process differently, so launch.PROCESS_FAILED does not find it",
    },
    "engine/arg_utils.py": {
        "default_max_num_seqs.get(\n                usage_context,": "the defaults of batches no longer depend on UsageContext",
    },
    "utils/system_utils.py": {
        "mp_method = envs.VLLM_WORKER_MULTIPROC_METHOD": "vLLM decides by something else whether the engine's process is forked",
    },
    "v1/engine/coordinator.py": {'name="VLLM_DP_Coordinator"': "vLLM gives its coordinator's process another name than VLLM_..."},
    "v1/executor/multiproc_executor.py": {'name=f"VllmWorker-{rank}"': "vLLM gives its workers' processes another name than VllmWorker"},
    "config/scheduler.py": {
        "encoder_cache_size: int = Field(init=False)": "the configuration has no encoder_cache_size",
        "max_num_encoder_input_tokens: int = Field(init=False)": "the configuration has no max_num_encoder_input_tokens",
    },
    "v1/core/encoder_cache_manager.py": {
        "scheduler_config.max_num_encoder_input_tokens, max_tokens_per_mm_item": "max_num_encoder_input_tokens no longer bounds an image",
        "scheduler_config.encoder_cache_size, max_tokens_per_mm_item": "encoder_cache_size no longer bounds an image",
    },
    "v1/metrics/loggers.py": {
        "for itl in iteration_stats.inter_token_latencies_iter:": "times between tokens are elsewhere than in inter_token_latencies_iter",
        "for ttft in iteration_stats.time_to_first_tokens_iter:": "times to the first token are in another list",
        "for finished_request in iteration_stats.finished_requests:": "ended requests are elsewhere than in finished_requests",
        "self.histogram_iteration_tokens[engine_idx].observe(": "the tokens of a step are recorded in another histogram",
    },
    "v1/metrics/stats.py": {
        "self.inter_token_latencies_iter: list[float] = []": "inter_token_latencies_iter is not a list of seconds",
    },
}
"""Texts in vLLM's source by file, and for each the change that its absence means."""


@pytest.mark.parametrize("file", SOURCES)
def test_source_has_what_compat_touches(file: str) -> None:
    vllm = find_spec("vllm")
    assert vllm
    assert vllm.origin
    source = (Path(vllm.origin).parent / file).read_text()
    changed = [why for text, why in SOURCES[file].items() if text not in source]
    assert not changed, f"vLLM's {file} has changed since {seeds.READ_IN}x: {'; '.join(changed)}. Read it again and adapt `compat`."


SIGNATURES = {
    "vllm.v1.engine.async_llm:AsyncLLM.add_request": "request_id prompt params lora_request trace_headers",
    "vllm.v1.engine.async_llm:AsyncLLM.abort": "request_id internal",
    "vllm.v1.engine.async_llm:AsyncLLM.is_paused": "",
    "vllm.v1.engine.async_llm:AsyncLLM.add_lora": "lora_request",
    "vllm.v1.engine.async_llm:AsyncLLM.remove_lora": "lora_id",
    "vllm.v1.engine.async_llm:AsyncLLM.shutdown": "",
    "vllm.v1.engine.async_llm:AsyncLLM.from_vllm_config": "vllm_config stat_loggers enable_log_requests disable_log_stats",
    "vllm.v1.engine.output_processor:RequestOutputCollector": "output_kind request_id",
    "vllm.v1.engine.output_processor:RequestOutputCollector.put": "output",
    "vllm.v1.engine.detokenizer:IncrementalDetokenizer.num_output_tokens": "",
    "vllm.v1.engine.detokenizer:IncrementalDetokenizer.from_new_request": "tokenizer request",
    "vllm.v1.engine.detokenizer:BaseIncrementalDetokenizer": "request",
    "vllm.v1.engine.detokenizer:uses_fast_detokenizer": "tokenizer",
    "vllm.v1.engine.output_processor:OutputProcessor.add_request": "request prompt parent_req request_index queue",
    "vllm.v1.engine.output_processor:OutputProcessor.process_outputs": (
        "engine_core_outputs engine_core_timestamp iteration_stats weight_version"
    ),
    "vllm.v1.engine.output_processor:OutputProcessor.abort_requests": "request_ids internal",
    "vllm.v1.engine.output_processor:OutputProcessor._finish_request": "req_state",
    "vllm.v1.engine.output_processor:OutputProcessor.propagate_error": "e",
    "vllm.v1.engine.output_processor:OutputProcessor.update_scheduler_stats": "scheduler_stats",
    "vllm.v1.engine.core_client:_process_utility_output": "output utility_results",
    "vllm.v1.engine.core_client:AsyncMPClient.abort_requests_async": "request_ids",
    "vllm.renderers.base:BaseRenderer.render_cmpl_async": "prompts skip_mm_cache",
    "vllm.renderers.base:BaseRenderer.update_mm_cache_stats": "",
    "vllm.renderers.base:BaseRenderer.mm_processor_cache.fget": "self",
    "vllm.multimodal.inputs:MultiModalFieldConfig.batched": "modality",
    "vllm.multimodal.inputs:MultiModalKwargsItem": "",
    "vllm.multimodal.inputs:MultiModalKwargsItems": "",
    "vllm.multimodal.processing:BaseProcessingInfo.validate_num_items": "modality num_items",
    "vllm.multimodal.processing:BaseProcessingInfo.allowed_mm_limits.func": "self",
    "vllm.inputs:mm_input": "prompt_token_ids mm_kwargs mm_hashes mm_placeholders cache_salt",
    "vllm.multimodal.inputs:MultiModalFieldElem": "data field",
    "vllm.multimodal.inputs:MultiModalFeatureSpec": "data modality identifier mm_position mm_hash",
    "vllm.multimodal.inputs:PlaceholderRange": "offset length",
    "vllm.multimodal.cache:LruKeyReplicatedSenderCache.get_and_update_item": "mm_item mm_hash",
    "vllm.multimodal.cache:LruKeyReplicatedSenderCache.is_cached_item": "mm_hash",
    "vllm.multimodal.cache:LruKeyReplicatedSenderCache.touch_sender_cache_item": "mm_hash",
    "vllm.multimodal.cache:LruKeyReplicatedSenderCache.release_sender_touches": "",
    "vllm.v1.engine.input_processor:InputProcessor.assign_request_id": "request",
    "vllm.v1.engine.async_llm:AsyncLLM.check_admission": "request_id",
    "vllm.renderers.base:BaseRenderer.get_mm_processor": "",
    "vllm.inputs:tokens_input": "prompt_token_ids",
    "vllm.engine.arg_utils:AsyncEngineArgs.add_cli_args": "parser",
    "vllm.engine.arg_utils:AsyncEngineArgs.from_cli_args": "args",
    "vllm.engine.arg_utils:AsyncEngineArgs.create_engine_config": "usage_context",
    "vllm.envs:disable_envs_cache": "",
    "vllm.utils.cpu_resource_utils:get_allowed_cpu_list": "",
    "vllm.utils.cpu_resource_utils:get_memory_node_info": "node_id",
    "vllm.envs:enable_envs_cache": "",
    "vllm.model_executor.models.llava:BaseLlavaProcessingInfo.get_num_image_tokens": "image_width image_height",
    "vllm.model_executor.models.llava_onevision:LlavaOnevisionProcessingInfo.get_num_video_tokens": "image_width image_height num_frames",
    "vllm.model_executor.models.llava_next_video:LlavaNextVideoProcessingInfo.get_num_video_tokens": "image_width image_height num_frames",
    "vllm.model_executor.models.llava:BaseLlavaProcessingInfo.get_vision_encoder_info": "",
    "vllm.model_executor.models.llava:BaseLlavaProcessingInfo.get_hf_processor": "",
    "vllm.model_executor.models.vision:VisionEncoderInfo.get_patch_grid_length": "",
    "vllm.model_executor.model_loader.utils:get_model_cls": "model_config",
    "vllm.model_executor.models.utils:WeightsMapper.get_rename_mapper": "",
    "vllm.model_executor.models.utils:WeightsMapper.map_name": "key",
    "vllm.lora.utils:parse_fine_tuned_lora_name": "name weights_mapper",
    "vllm.lora.peft_helper:PEFTHelper.from_dict": "config_dict",
    "vllm.lora.peft_helper:PEFTHelper.validate_legal": "lora_config",
    "vllm.lora.peft_helper:PEFTHelper.get_rank_and_scaling": "module_name",
    "vllm.lora.request:LoRARequest": "lora_name lora_int_id lora_path",
    "vllm.v1.metrics.loggers:PrometheusStatLogger.record": "scheduler_stats iteration_stats mm_cache_stats engine_idx",
    "vllm.v1.worker.cpu_worker:CPUWorker.sample_tokens": "grammar_output",
}
"""Functions and classes of vLLM, and the parameters that are passed to them."""


@pytest.mark.parametrize("name", SIGNATURES)
def test_function_takes_the_parameters_that_it_is_given(name: str) -> None:
    check_parameters(name, SIGNATURES[name], "vLLM", "compat")


EXCEPTIONS = (
    *("vllm.exceptions:VLLMClientError", "vllm.exceptions:GracefulHTTPError", "vllm.exceptions:RetryableRequestError"),
    "vllm.v1.engine.exceptions:EngineDeadError",
)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_vllm_still_raises_these_errors(name: str) -> None:
    module, _, path = name.partition(":")
    error = getattr(importlib.import_module(module), path, None)
    assert isinstance(error, type), f"vLLM has no error {name} any more. Adapt VllmEngine.generate."
    assert issubclass(error, Exception)


@pytest.mark.parametrize("name", [*(name for name in ENVIRONMENT if name.startswith("VLLM_")), FLASHINFER])
def test_vllm_still_reads_the_variables_that_are_set(name: str) -> None:
    from vllm import envs

    assert name in envs.environment_variables, f"vLLM no longer reads {name}. Adapt launch.ENVIRONMENT."


DOCUMENTED = (
    *("vllm", "vllm.config", "vllm.engine.arg_utils", "vllm.exceptions", "vllm.inputs", "vllm.logprobs", "vllm.lora.request"),
    *("vllm.platforms", "vllm.sampling_params", "vllm.v1.engine.exceptions"),
)
TYPES = ("vllm.v1.engine.async_llm", "vllm.v1.engine.output_processor", "vllm.lora.peft_helper")
"""Modules that other files import only for the types of their arguments."""
PACKAGE = Path(package.__file__).parent


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda file: file.name)
def test_only_compat_imports_internals_of_vllm(file: Path) -> None:
    imports = [line.split()[1] for line in file.read_text().splitlines() if line.strip().startswith(("from vllm", "import vllm"))]
    internal = set(imports) - {*DOCUMENTED, *TYPES}
    assert not internal, f"{file.name} imports {', '.join(sorted(internal))}; such names belong to the package compat"
