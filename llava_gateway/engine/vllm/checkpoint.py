"""Whether a checkpoint can be served, as far as its small files tell: before vLLM is imported, which takes seconds and explains little."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_gateway.convert.detect import advice, is_lfs_pointer, original_kind
from llava_gateway.errors import EngineStartError

SERVED = {"llava": "LLaVA-1.5 and its kin", "llava_next": "LLaVA-NeXT", "llava_onevision": "LLaVA-OneVision"}
"""Values of config.json's `model_type`."""
SIGHT = ("vision", "image", "img", "mm_")
"""In the names of config.json's keys, where a model sees."""
TOWERS = ("clip_vision_model", "siglip_vision_model")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
IMAGE_PROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
JSON_FILES = (IMAGE_PROCESSOR, PROCESSOR, "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.json")
INDEX = "model.safetensors.index.json"


def check_checkpoint(model: str, flags: Sequence[str]) -> dict[str, Any]:
    """The checkpoint's config.json; empty if vLLM alone can tell, by these flags of its own. Raises EngineStartError, which names the file
    and what to do."""
    given = _given(flags)
    path = Path(model)
    if "://" in model or given.hf_config_path or given.hf_overrides or given.config_format or os.environ.get("VLLM_USE_MODELSCOPE"):
        return {}
    if path.is_dir():
        if told := advice(path):
            raise EngineStartError(told)
        config = _read(path / "config.json")
        check_kind(model, config)
        _check_files(path, given)
    elif path.exists() or path.is_absolute() or model.startswith((".", "~")):
        raise EngineStartError(f"there is no directory {model}")
    else:
        found = hub_config(model, given.revision, given.download_dir)
        config = _read(found)
        if original_kind(found.parent):
            target = f"{path.name}-hf"
            raise EngineStartError(
                f"{model} is an original LLaVA checkpoint; run `llava-gateway convert {model} {target}`, and serve {target}"
            )
        check_kind(model, config)
    return config


def _given(flags: Sequence[str]) -> argparse.Namespace:
    """Those of vLLM's flags that say where else it looks."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("hf-config-path", "hf-overrides", "config-format", "revision", "download-dir", "load-format", "tokenizer"):
        parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}", nargs="?")
    return parser.parse_known_args(flags)[0]


def check_kind(model: str, config: dict[str, Any]) -> None:
    """Whether a model with this config.json is of a kind that is served. Raises EngineStartError."""
    kind = str(config.get("model_type"))
    if kind not in SERVED:
        blind = "" if any(word in key for key in config for word in SIGHT) else ", which sees no pictures"
        served = ", ".join(f"{name} ({what})" for name, what in SERVED.items())
        raise EngineStartError(f"{model} is a model of type {kind}{blind}; these types are served: {served}")
    vision = config.get("vision_config")
    tower = vision.get("model_type", TOWERS[0]) if isinstance(vision, dict) else vision
    if tower not in TOWERS:
        raise EngineStartError(f"{model} sees by a {tower}; served are {' and '.join(TOWERS)}")


def _check_files(directory: Path, given: argparse.Namespace) -> None:
    files = {name: _read(directory / name) for name in JSON_FILES if (directory / name).exists()}
    if not given.tokenizer and not any((directory / name).exists() for name in TOKENIZERS):
        raise EngineStartError(f"{directory} has no tokenizer: {TOKENIZERS[0]} is missing; copy it from where the checkpoint came from")
    if IMAGE_PROCESSOR not in files and "image_processor" not in files.get(PROCESSOR, {}):
        raise EngineStartError(f"{directory} has no processor: {IMAGE_PROCESSOR} is missing; copy it from where the checkpoint came from")
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
    """By its header, and by its size, which the header gives."""
    from safetensors import SafetensorError, safe_open

    try:
        if is_lfs_pointer(file):
            raise EngineStartError(f"{file} is a pointer of git-lfs and not the weights; run `git lfs pull`")
        with safe_open(file, "np"):
            pass
    except FileNotFoundError:
        raise EngineStartError(f"{file} is missing, and {INDEX} lists it; download the checkpoint anew") from None
    except (SafetensorError, OSError) as error:
        raise EngineStartError(f"{file} is damaged or cut short ({error}); download it anew") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise EngineStartError(f"{file.parent} is no checkpoint: {file.name} is missing") from None
    except OSError as error:
        raise EngineStartError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EngineStartError(f"{file} is no JSON ({error}); download it anew") from error
    if not isinstance(value, dict):
        raise EngineStartError(f"{file} is no JSON object; download it anew")
    return value


ON_CPU = ("awq", "auto_awq", "gptq", "auto_gptq", "compressed-tensors", "int8_per_channel_weight_only")
CPU_BITS = 4
"""Of AWQ's and GPTQ's weights; vLLM's kernels for the CPU know no others."""


def check_quantization(config: dict[str, Any], asked: str | None) -> None:
    """`config`: the checkpoint's config.json; `asked`: vLLM's --quantization. Imports vLLM. Raises EngineStartError."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
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
    if method not in QUANTIZATION_METHODS:
        raise EngineStartError(f"{named} is none that this vLLM knows; it knows {', '.join(QUANTIZATION_METHODS)}")
    if not current_platform.is_cpu():
        return
    cannot = f"{named} does not run on a CPU"
    if method not in ON_CPU:
        raise EngineStartError(f"{cannot}; these do: {', '.join(ON_CPU)}")
    if (bits := found.get("bits", CPU_BITS)) != CPU_BITS:
        raise EngineStartError(f"{cannot} with {bits} bits; it does with {CPU_BITS}")


HUB_TIMEOUT = 10


def hub_config(model: str, revision: str | None, cache: str | None) -> Path:
    """`cache`: the directory of downloads, where it is not Hugging Face's own. Raises EngineStartError."""
    from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]  # documented there

    earlier = None
    try:
        earlier = try_to_load_from_cache(model, "config.json", cache, revision)
        # One request, which fails where a download would try again for half a minute, or wait for ever.
        url = f"{constants.ENDPOINT}/api/models/{model}/auth-check"
        hf_raise_for_status(get_session().get(url, headers=build_hf_headers(), timeout=HUB_TIMEOUT))
        return Path(hf_hub_download(model, "config.json", revision=revision, cache_dir=cache))
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
        raise EngineStartError(f"{model} is no checkpoint: it has no config.json on the Hugging Face Hub") from error
    except Exception as error:  # no network, in one of its many ways
        if isinstance(earlier, str):
            return Path(earlier)
        offline = isinstance(error, errors.OfflineModeIsEnabled)
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        why = "HF_HUB_OFFLINE is set" if offline else f"the Hugging Face Hub cannot be reached ({reason})"
        raise EngineStartError(
            f"there is no directory {model} here, {why}, and no earlier download; download it elsewhere, and name its directory"
        ) from error
