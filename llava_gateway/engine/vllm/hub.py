"""A checkpoint's config.json from the Hugging Face Hub, or from what was downloaded earlier; and in words why neither has it."""

from pathlib import Path

from llava_gateway.engine import EngineStartError

TIMEOUT = 10


def hub_config(model: str, revision: str | None, cache: str | None) -> Path:
    """`cache`: the directory of downloads, where it is not Hugging Face's own. Raises EngineStartError."""
    from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]  # documented there

    earlier = None
    try:
        earlier = try_to_load_from_cache(model, "config.json", cache, revision)
        # One request, which fails where a download would try again for half a minute, or wait for ever.
        url = f"{constants.ENDPOINT}/api/models/{model}/auth-check"
        hf_raise_for_status(get_session().get(url, headers=build_hf_headers(), timeout=TIMEOUT))
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
