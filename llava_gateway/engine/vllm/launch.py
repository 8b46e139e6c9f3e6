"""The start of vLLM: the flags and variables that suit an engine behind a gateway, and the description of the model that it has loaded."""

import argparse
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3
from pydantic import ValidationError

from llava_gateway import __version__
from llava_gateway.engine.vllm.checkpoint import check_checkpoint, check_kind, check_quantization
from llava_gateway.engine.vllm.compat import launch, model
from llava_gateway.engine.vllm.compat.engine_process import is_cpu_build
from llava_gateway.engine.vllm.compat.seeds import choose_cpu_worker
from llava_gateway.engine.vllm.early_process import EarlyProcess
from llava_gateway.engine.vllm.lora import check_lora_support, reserve_slots
from llava_gateway.engine.vllm.memory_check import fit_to_machine
from llava_gateway.engine.vllm.preload import linked_preload, own_preload
from llava_gateway.engine.vllm.refused_flags import check_flags
from llava_gateway.errors import EngineStartError
from llava_gateway.images.geometry import ImageTokens, Size, VideoTokens
from llava_gateway.memory.fit import UTILIZATION, cpu_cache_bytes, gigabytes
from llava_gateway.model_info import ModelInfo, VideoConfig, VisionConfig
from llava_gateway.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)

ONEVISION, NEXT_VIDEO = "llava_onevision", "llava_next_video"
ONEVISION_SQUARES = 9
"""The most squares of a LLaVA-OneVision grid. vLLM uses this number, whatever `vision_aspect_ratio` of config.json says."""
CONTEXT_PARTS = 2
"""One video takes at most this part of the context: a half."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with executor "uni": no Worker process beside the EngineCore
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would keep the gateway's connections and locks in the engine's process
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE": "32",  # outputs between two turns of the event loop; 128 with log probabilities hold it for 50 ms
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore:resource_tracker:UserWarning",  # for the processes that vLLM starts
}
"""Environment variables that suit an embedded engine. They are set unless the operator has set them."""
SOCKET_FOLDER = "VLLM_RPC_BASE_PATH"
"""The environment variable with the directory of vLLM's Unix domain sockets. Its default is the directory for temporary files."""
FLASHINFER = "VLLM_USE_FLASHINFER_SAMPLER"
"""The environment variable with which vLLM samples by FlashInfer's kernels, or not. By default it does."""
CUDA, COMPILED_KERNELS = "/usr/local/cuda", "flashinfer_jit_cache"
"""The directory in which FlashInfer looks for CUDA's compiler, and the package that has its kernels compiled already."""
MAX_SOCKET_FOLDER = 107 - len("/") - 36
"""The greatest length of that directory, in bytes: a socket's path has at most 107 (unix(7)), and its name is a UUID."""


def set_environment() -> None:
    """Set the variables of ENVIRONMENT. A process of multiprocessing has them if it starts later, and vLLM if it is imported later."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def engine_arguments(
    model_name: str,
    flags: Sequence[str],
    early_process: EarlyProcess | None = None,
    video_frames: int = 1,
    *,
    memory_check: bool = True,
) -> "AsyncEngineArgs":
    """Return vLLM's arguments for a model. Imports vLLM, which takes seconds. Raises EngineStartError.

    `model_name`: a directory, or a name on the Hugging Face Hub. `flags`: vLLM's own, as on its command line, and LLaVA's `--load-8bit`.
    `early_process`: is started before the import. `video_frames`: as in the setting. `memory_check`: as in `VllmEngine`.
    """
    flags = fit_to_machine(model_name, flags, memory_check=memory_check)
    config = check_checkpoint(model_name, flags)
    set_environment()
    _choose_socket_folder()
    if is_cpu_build():
        _set_cpu_environment()
    else:
        _set_gpu_environment()
    try:
        if early_process:
            early_process.start(config.get("model_type"))
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform

        parser = launch.flag_parser()
    except (ImportError, OSError, RuntimeError) as error:  # the last two: a library of vLLM's cannot load its compiled parts
        remedy = "install the extra 'cpu' or 'cuda', or run `llava-gateway doctor`"
        raise EngineStartError(f"vLLM cannot be imported ({error}); {remedy}") from error
    try:
        arguments = parser.parse_args(["--model", model_name, *flags])
    except (argparse.ArgumentError, ValueError, SystemExit) as error:  # argparse exits at some errors all the same
        reason = str(error)
        if reason.startswith(launch.UNKNOWN_FLAG):
            raise EngineStartError(f"neither llava-gateway nor vLLM knows the flag {reason.split()[2]}") from error
        raise EngineStartError(f"vLLM does not take these flags: {reason}") from error
    check_flags(arguments, parser)
    check_quantization(config, arguments.quantization)
    if config.get("model_type") == NEXT_VIDEO:
        _limit_test_video(arguments, video_frames)
    if arguments.enable_lora:
        check_lora_support(config)
        reserve_slots(arguments, cpu=current_platform.is_cpu())
    if current_platform.is_cpu():
        _adapt_to_cpu(arguments)
    if arguments.structured_outputs_config.backend == "auto":
        # With "auto" vLLM keeps the backend that the first request led it to, and other requests' grammars fail on that. Of the backends
        # only guidance limits the work for a token: a regular expression of 100 characters makes xgrammar 0.2.8 hang.
        # Small models that may put white space anywhere put it everywhere, and do not finish their answer. So they do with further keys.
        arguments.structured_outputs_config.backend = "guidance"
        arguments.structured_outputs_config.disable_any_whitespace = True
        arguments.structured_outputs_config.disable_additional_properties = True
    return AsyncEngineArgs.from_cli_args(arguments)


def _limit_test_video(arguments: argparse.Namespace, frames: int) -> None:
    """Have vLLM measure its memory with a video of this many frames. LLaVA-NeXT-Video's default is as many as fit the context.

    Raises EngineStartError if the flag `--limit-mm-per-prompt` forbids videos.
    """
    given = arguments.limit_mm_per_prompt.get("video", 1)
    options = {"num_frames": frames} | (given if isinstance(given, dict) else {"count": given})
    if options.get("count") == 0:
        raise EngineStartError("--limit-mm-per-prompt forbids videos, and this model takes nothing else")
    arguments.limit_mm_per_prompt = {**arguments.limit_mm_per_prompt, "video": options}


def _choose_socket_folder() -> None:
    """Have vLLM create its Unix domain sockets in /tmp if their paths would be too long in TMPDIR. Raises EngineStartError."""
    try:
        folder = os.environ.get(SOCKET_FOLDER) or tempfile.gettempdir()
    except OSError as error:
        raise EngineStartError(f"there is no directory for temporary files: {error.strerror}") from error
    if len(os.fsencode(folder)) <= MAX_SOCKET_FOLDER:
        return
    if SOCKET_FOLDER in os.environ:
        raise EngineStartError(f"{SOCKET_FOLDER} is longer than {MAX_SOCKET_FOLDER} bytes; sockets need a shorter path")
    os.environ[SOCKET_FOLDER] = "/tmp"  # noqa: S108 # the sockets have random names


def _adapt_to_cpu(arguments: argparse.Namespace) -> None:
    """Change vLLM's arguments and the environment for an engine on a CPU."""
    # Compiling costs minutes on a CPU, needs a C++ compiler, and gains nothing. (vLLM compiles some functions at their first use, such as
    # the ranks of log probabilities. All requests waited for that for 18 s.)
    arguments.enforce_eager = True
    _set_cpu_environment()
    if arguments.tensor_parallel_size == 1 and arguments.distributed_executor_backend is None:
        arguments.distributed_executor_backend = "uni"
    choose_cpu_worker(arguments)


def _set_cpu_environment() -> None:
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # for the reason in `_adapt_to_cpu`
    # One core stays free for the front end. The engine's threads wait for each other at each layer, and stand still while the front end
    # has one of their cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - 1)))


def _set_gpu_environment() -> None:
    """Have the engine find the programs that compile kernels for a GPU, or do without these kernels.

    FlashInfer compiles its kernels for `top_k` and `top_p` at their first use, with `ninja` from PATH and CUDA's `nvcc`. Without one of
    them it raises an error, which ends the engine. vLLM has other kernels for the same.
    """
    own = Path(sys.executable).parent  # where pip has installed ninja; the PATH of a service does not lead there
    if not shutil.which("ninja") and (own / "ninja").exists():
        os.environ["PATH"] = f"{own}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or CUDA
    compiles = shutil.which("ninja") and (shutil.which("nvcc") or (Path(toolkit) / "bin" / "nvcc").exists())
    if not (compiles or find_spec(COMPILED_KERNELS)):
        os.environ.setdefault(FLASHINFER, "0")


def make_engine(arguments: "AsyncEngineArgs", early_process: EarlyProcess, video_frames: int) -> "AsyncLLM":
    """Start vLLM's processes, and return the engine when it has loaded the model. Raises EngineStartError.

    `early_process`: becomes the engine's process if the engine fits into it. `video_frames`: as in the setting.
    """
    import torch

    from llava_gateway.engine.vllm.metrics import BulkStatLogger

    torch.set_num_threads(1)  # of this process, which works on small images: more threads would wait for each other and spin
    launch.forget_environment()
    try:
        with own_preload():
            config = launch.create_config(arguments)
            _allow_largest_media(config, video_frames)
            if is_cpu_build():
                _bound_cpu_cache(config)
            with early_process.offered(config), linked_preload():
                engine = launch.create_engine(config, arguments, BulkStatLogger)
    except Exception as error:
        raise EngineStartError(f"vLLM could not load {arguments.model}: {_one_line(error)}") from error
    launch.cache_environment()
    return engine


def _bound_cpu_cache(config: "VllmConfig") -> None:
    """Leave a part of a CPU's memory to other programs, unless the operator has chosen. Raises EngineStartError if it is not enough.

    vLLM's default takes 92 % of the memory. It does not start if other programs use more than the rest.
    """
    if config.cache_config.kv_cache_memory_bytes is not None or config.cache_config.gpu_memory_utilization != UTILIZATION:
        return
    request, free = launch.request_cache_bytes(config), launch.free_cpu_memory()
    if request > free:
        tokens = config.model_config.max_model_len
        raise EngineStartError(
            f"one request of {tokens} tokens needs {gigabytes(request)} for its KV cache, and {gigabytes(free)} of memory are free; "
            "choose a smaller --max-model-len"
        )
    launch.bound_cache(config, cpu_cache_bytes(request, free))


def _allow_largest_media(config: "VllmConfig", video_frames: int) -> None:
    """Have the engine accept the largest image of LLaVA-OneVision, and the longest video that the gateway samples for it.

    vLLM computes 8,748 tokens for the image, from one in the shape of a grid, and refuses larger ones. Images of some other shapes, such as
    1152x1407, take up to 8,765 tokens. For a video vLLM expects at most 16 frames.
    """
    hf_config = config.model_config.hf_config
    if hf_config.model_type == ONEVISION:
        side, patches = hf_config.vision_config.image_size, hf_config.vision_config.image_size // hf_config.vision_config.patch_size
        tokens = ImageTokens(patches**2, side, patches, _grids(hf_config), ONEVISION_SQUARES)
        video = VideoTokens(math.ceil(patches / 2) ** 2, 1)
        frames = video.fitting_frames(video_frames, config.model_config.max_model_len // CONTEXT_PARTS)
        launch.allow_media_tokens(config, max(tokens.max_image_tokens, video(frames)))


def _one_line(error: Exception) -> str:
    """Return the reason of an error in one line. vLLM checks itself by pydantic, whose messages have several lines."""
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return "its process has ended; the log above says why" if reason.startswith(launch.PROCESS_FAILED) else reason


def describe(engine: "AsyncLLM", video_frames: int) -> ModelInfo:
    """Return the description of the engine's model. Raises EngineStartError if that is not a LLaVA model that can be served.

    `video_frames`: as in the setting. The kind is checked again here, because vLLM's flags may have changed the model's configuration.
    """
    config = engine.vllm_config.model_config
    check_kind(config.model, config.hf_config.to_dict())
    info = model.processing_info(engine)
    processor = model.hf_processor(info)
    tokenizer = processor.tokenizer
    takes_images = model.takes_images(info)
    video = _video(
        info, config.hf_config, processor, video_frames, min(config.max_model_len // CONTEXT_PARTS, model.max_media_tokens(engine))
    )
    if not takes_images and video is None:
        raise EngineStartError(f"{config.model} takes only videos, and its video processor does not fit its vision tower")
    return ModelInfo(
        tokenizer=Tokenizer(tokenizer.backend_tokenizer.to_str()),
        chat_template=processor.chat_template or tokenizer.chat_template or "",
        special_tokens={name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
        image_token=processor.image_token,
        vision=_vision(info, config.hf_config, processor.image_processor),
        context_length=config.max_model_len,
        max_images=model.max_images(info),
        image_start_end=getattr(config.hf_config, "mm_use_im_start_end", None),
        default_sampling=model.default_sampling(config),
        max_answer_tokens=model.max_answer_tokens(config),
        fingerprint="fp_" + blake3(f"{__version__} {config.model} {model.config_hash(engine.vllm_config)}".encode()).hexdigest(5),
        takes_images=takes_images,
        video=video,
        video_token=processor.video_token if video else "",
    )


def _vision(info: Any, config: Any, image_processor: Any) -> VisionConfig:
    """Return how the model sees images. `info`: as `compat.model.processing_info` returns it. `config`: the checkpoint's configuration."""
    side = config.vision_config.image_size
    min_image_tokens = model.square_tokens(info, side)
    grids = _grids(config)
    max_squares = ONEVISION_SQUARES if config.model_type == ONEVISION else None
    tokens = ImageTokens(min_image_tokens, side, model.patches_per_side(info), grids, max_squares)
    red, green, blue = (int(mean * 255) for mean in image_processor.image_mean)
    crops = image_processor.do_center_crop and image_processor.size.get("shortest_edge")
    pads = getattr(image_processor, "do_pad", False)
    return VisionConfig(
        side=side,
        tokens=tokens,
        min_image_tokens=min_image_tokens,
        max_image_tokens=tokens.max_image_tokens,
        grids=grids,
        aspect_ratio="pad" if pads else "crop" if crops else "resize",
        mean_color=(red, green, blue),
    )


def _video(info: Any, config: Any, processor: Any, video_frames: int, max_tokens: int) -> VideoConfig | None:
    """Return how the model sees videos, or None if it takes none.

    The arguments are as for `_vision`. `video_frames`: as in the setting. `max_tokens`: the upper bound of the tokens of a video.
    """
    if not (max_videos := model.max_videos(info)):
        return None
    side, video_processor = config.vision_config.image_size, processor.video_processor
    crops = video_processor.do_center_crop and video_processor.size.get("shortest_edge")
    frame = (video_processor.crop_size if crops else video_processor.size).get("height")
    if frame != side:
        log.warning("videos are refused: the video processor makes frames of %s pixels, and the vision tower takes %d", frame, side)
        return None
    one, two = (model.video_tokens(info, side, frames) for frames in (1, 2))
    tokens = VideoTokens(two - one, 2 * one - two)
    max_frames = tokens.fitting_frames(video_frames, max_tokens)
    return VideoConfig(side, "crop" if crops else "resize", tokens, max_frames, max_videos)


def _grids(config: Any) -> tuple[Size, ...]:
    return () if config.model_type in ("llava", NEXT_VIDEO) else tuple((width, height) for height, width in config.image_grid_pinpoints)
