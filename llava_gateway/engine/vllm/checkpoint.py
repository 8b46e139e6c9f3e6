"""Checks whether a checkpoint can be served.

Most checks read the small files of the checkpoint before vLLM is imported: the import takes seconds, and vLLM's own errors explain little.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_gateway.convert.detect import advice, is_lfs_pointer, original_kind
from llava_gateway.engine.vllm.compat.model import known_quantizations
from llava_gateway.errors import EngineStartError

SERVED = {
    "llava": "LLaVA-1.5 and models like it",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "llava_next_video": "LLaVA-NeXT-Video",
}
"""The values of `model_type` in config.json that can be served, and the models that have them."""
VISION_KEYS = ("vision", "image", "img", "mm_")
"""Parts of the keys of config.json that only models with vision have."""
TOWERS = ("clip_vision_model", "siglip_vision_model")
"""The vision towers that can be served, as `model_type` of the vision config names them."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
IMAGE_PROCESSOR, VIDEO_PROCESSOR, PROCESSOR = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"
JSON_FILES = (
    IMAGE_PROCESSOR,
    VIDEO_PROCESSOR,
    PROCESSOR,
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.json",
)
INDEX = "model.safetensors.index.json"


def check_checkpoint(model: str, flags: Sequence[str]) -> dict[str, Any]:
    """Return the checkpoint's config.json. Raises EngineStartError, whose message names the file and what to do.

    `model`: a directory, or a name on the Hugging Face Hub. `flags`: vLLM's own. Some of them change where vLLM finds the checkpoint; then
    only vLLM can check it, and the result is empty.
    """
    given = _location_flags(flags)
    path = Path(model)
    if "://" in model or given.hf_config_path or given.hf_overrides or given.config_format or os.environ.get("VLLM_USE_MODELSCOPE"):
        return {}
    if path.is_dir():
        if problem := advice(path):
            raise EngineStartError(problem)
        config = _read(path / "config.json")
        check_kind(model, config)
        _check_files(path, given, config)
    elif path.exists() or path.is_absolute() or model.startswith((".", "~")):
        raise EngineStartError(f"there is no directory {model}")
    else:
        found = hub_config(model, given.revision, given.download_dir, given.hf_token)
        config = _read(found)
        if original_kind(found.parent):
            target = f"{path.name}-hf"
            raise EngineStartError(
                f"{model} is an original LLaVA checkpoint; run `llava-gateway convert {model} {target}`, and serve {target}"
            )
        check_kind(model, config)
    return config


def _location_flags(flags: Sequence[str]) -> argparse.Namespace:
    """Return the flags of vLLM that change which files it reads."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("hf-config-path", "hf-overrides", "hf-token", "config-format", "revision", "download-dir", "load-format", "tokenizer"):
        parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}", nargs="?")
    return parser.parse_known_args(flags)[0]


def check_kind(model: str, config: dict[str, Any]) -> None:
    """Raise EngineStartError unless a model of this kind can be served. `config`: the model's config.json."""
    kind = str(config.get("model_type"))
    if kind not in SERVED:
        blind = "" if any(word in key for key in config for word in VISION_KEYS) else ", which sees no images"
        served = ", ".join(f"{name} ({what})" for name, what in SERVED.items())
        raise EngineStartError(f"{model} is a model of type {kind}{blind}; the supported types are {served}")
    vision = config.get("vision_config")
    tower = vision.get("model_type", TOWERS[0]) if isinstance(vision, dict) else vision
    if tower not in TOWERS:
        raise EngineStartError(f"{model} has the vision tower {tower}; the supported ones are {' and '.join(TOWERS)}")


def _check_files(directory: Path, given: argparse.Namespace, config: dict[str, Any]) -> None:
    files = {name: _read(directory / name) for name in JSON_FILES if (directory / name).exists()}
    if not given.tokenizer and not any((directory / name).exists() for name in TOKENIZERS):
        raise EngineStartError(f"{directory} has no tokenizer: {TOKENIZERS[0]} is missing; copy it from the source of the checkpoint")
    if IMAGE_PROCESSOR not in files and "image_processor" not in files.get(PROCESSOR, {}):
        raise EngineStartError(f"{directory} has no processor: {IMAGE_PROCESSOR} is missing; copy it from the source of the checkpoint")
    image_processor = files.get(IMAGE_PROCESSOR, {}).get("image_processor_type")
    has_video_processor = VIDEO_PROCESSOR in files or "video_processor" in files.get(PROCESSOR, {})
    if config["model_type"] == "llava_next_video" and image_processor == "LlavaNextImageProcessor" and not has_video_processor:
        raise EngineStartError(
            f"{directory} has no video processor: {VIDEO_PROCESSOR} is missing; copy {IMAGE_PROCESSOR} to it, and add "
            '"video_processor_type": "LlavaNextVideoVideoProcessor"'
        )
    if given.load_format in (None, "auto", "safetensors"):
        _check_weights(directory)


def _check_weights(directory: Path) -> None:
    files = sorted(directory.glob("*.safetensors"))
    if (directory / INDEX).exists():
        named = _read(directory / INDEX).get("weight_map")
        files = [directory / name for name in sorted(set(named.values()))] if isinstance(named, dict) else []
    if not files and not any(directory.glob("*.bin")) and not any(directory.glob("*.pt")):
        raise EngineStartError(f"{directory} has no weights: there is no *.safetensors file")
    for file in files:
        _check_safetensors(file)


def _check_safetensors(file: Path) -> None:
    """Raise EngineStartError unless the file has a header, and the size that the header gives."""
    from safetensors import SafetensorError, safe_open

    try:
        if is_lfs_pointer(file):
            raise EngineStartError(f"{file} is a pointer of git-lfs and not the weights; run `git lfs pull`")
        with safe_open(file, "np"):
            pass
    except FileNotFoundError:
        raise EngineStartError(f"{file} is missing, and {INDEX} lists it; download the checkpoint again") from None
    except (SafetensorError, OSError) as error:
        raise EngineStartError(f"{file} is damaged or cut short ({error}); download it again") from error


def _read(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises EngineStartError."""
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise EngineStartError(f"{file.parent} is not a checkpoint: {file.name} is missing") from None
    except OSError as error:
        raise EngineStartError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EngineStartError(f"{file} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise EngineStartError(f"{file} is not a JSON object; download it again")
    return value


ON_CPU = ("awq", "auto_awq", "gptq", "auto_gptq", "compressed-tensors", "fp8_per_block")
"""The quantization methods that run on a CPU."""
FOR_EXPERTS = ("experts_int8", "int8_per_channel_weight_only", "moe_wna16", "nvfp4_per_token")
"""The quantization methods that change only mixtures of experts. No model that is served has these."""
ONLINE = ("fp8_per_block", "fp8_per_channel", "fp8_per_tensor")
"""The quantization methods that change the weights of an ordinary checkpoint while it loads."""
CPU_BITS = 4
"""The bits of a weight of AWQ and GPTQ. vLLM's kernels for the CPU know no other number."""


def check_quantization(config: dict[str, Any], asked: str | None) -> None:
    """Raise EngineStartError if vLLM cannot run the quantized weights on this machine. Imports vLLM.

    `config`: the checkpoint's config.json. `asked`: vLLM's --quantization, or the method that `--load-8bit` has chosen.
    """
    from vllm.platforms import current_platform

    parts = (config, config.get("text_config"))
    keys = ("quantization_config", "compression_config")
    found: dict[str, Any] = next(
        (part[key] for part in parts if isinstance(part, dict) for key in keys if isinstance(part.get(key), dict)), {}
    )
    method = str(asked or found.get("quant_method") or "")
    if not method:
        return
    named = f"--quantization {method}" if asked else f"the checkpoint's quantisation, {method},"
    if method not in (known := known_quantizations()):
        raise EngineStartError(f"{named} is unknown to this vLLM, which knows {', '.join(known)}")
    if asked in FOR_EXPERTS:
        raise EngineStartError(f"{named} has no effect: it quantizes only mixtures of experts; see --load-8bit")
    if asked in ONLINE and found:
        raise EngineStartError(f"{named} is for 16-bit weights, and the checkpoint's are quantized already; leave out the flag")
    if not current_platform.is_cpu():
        return
    cannot = f"{named} does not run on a CPU"
    if method not in ON_CPU:
        raise EngineStartError(f"{cannot}; supported there: {', '.join(ON_CPU)}")
    if (bits := found.get("bits", CPU_BITS)) != CPU_BITS:
        raise EngineStartError(f"{cannot} with {bits} bits, only with {CPU_BITS}")


HUB_TIMEOUT = 10
"""Seconds that the Hugging Face Hub may take to answer."""


def hub_config(model: str, revision: str | None, cache: str | None, token: str | None) -> Path:
    """Return the path of a model's config.json, downloaded from the Hugging Face Hub or by an earlier start. Raises EngineStartError.

    `cache`: the directory of downloads. None: Hugging Face's own. `token`: of an account. None: that of HF_TOKEN, or of an earlier login.
    """
    from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]  # documented there

    earlier = None
    try:
        earlier = try_to_load_from_cache(model, "config.json", cache, revision)
        # This request fails at once. A download would try again for half a minute, or wait for ever.
        url = f"{constants.ENDPOINT}/api/models/{model}/auth-check"
        hf_raise_for_status(get_session().get(url, headers=build_hf_headers(token=token), timeout=HUB_TIMEOUT))
        return Path(hf_hub_download(model, "config.json", revision=revision, cache_dir=cache, token=token))
    except errors.HFValidationError as error:
        raise EngineStartError(f"{model} is neither a directory here nor the name of a model on the Hugging Face Hub") from error
    except errors.GatedRepoError as error:
        raise EngineStartError(
            f"{model} is gated: accept its terms on its page of the Hugging Face Hub, and set HF_TOKEN to a token of that account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise EngineStartError(
            f"there is no directory {model} here, and no such model on the Hugging Face Hub; for a private one set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EngineStartError(f"{model} has no revision {revision} on the Hugging Face Hub") from error
    except errors.RemoteEntryNotFoundError as error:
        raise EngineStartError(f"{model} is not a checkpoint: it has no config.json on the Hugging Face Hub") from error
    except Exception as error:  # the network fails with errors of many classes
        if isinstance(earlier, str):
            return Path(earlier)
        offline = isinstance(error, errors.OfflineModeIsEnabled)
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        why = "HF_HUB_OFFLINE is set" if offline else f"the Hugging Face Hub cannot be reached ({reason})"
        raise EngineStartError(
            f"there is no directory {model} here, {why}, and no earlier download; download it elsewhere, and name its directory"
        ) from error
