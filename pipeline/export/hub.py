"""An exported folder on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.redact import discreet_text


def push(folder: Path, name: str) -> str:
    """Upload a folder as model `name`; a repository that is made for it is private.

    Returns:
        Its address.

    Raises:
        UserError: no network, no token, no right, or no name for a repository.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        api = HfApi()
        where = api.create_repo(name, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(
            repo_id=where.repo_id,
            folder_path=folder,
            commit_message=f"Export of {folder.name}",
            delete_patterns=["groups/*", "models/*", "onnx/*"],
        )
    except HFValidationError as error:
        raise UserError(f"hub={name}: is no name of a repository ({_line(error)})") from None
    except (HfHubHTTPError, httpx2.HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise UserError(
            f"hub={name}: not pushed ({_line(error)}); {folder} is complete: the same command tries"
            " again, with a network and a token in HF_TOKEN"
        ) from None
    return str(where)


def _line(error: Exception) -> str:
    text = discreet_text(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
