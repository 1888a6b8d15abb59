"""Publishing a model or a pipeline on the hub with its card, and the hub's faults in plain words."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm_from_scratch.config import write_file

CARD = (Path(__file__).parent / "assets" / "model_card.md").read_text(encoding="utf-8")


class PushMixin:
    """`push_to_hub` for whatever has `save_pretrained`."""

    def push_to_hub(
        self,
        repo_id: str,
        card: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        **save_options: Any,
    ) -> str:
        """Saves to a repository on the hub, which is made if missing.

        Args:
            repo_id: "owner/name", or a name under the token's owner.
            card: text of the model card (README.md); by default a short one, unless the repository has its own.
            private: whether a new repository is private.
            token: with the right to write; by default the one stored by `hf auth login`.
            commit_message: by default "Upload" and the class's name.
            save_options: as `save_pretrained` takes, such as `variant`.

        Returns:
            The commit's address.

        Raises:
            PermissionError: no token, or one that may not write there.
            ConnectionError: the hub could not be reached.
        """
        from huggingface_hub import HfApi

        api, name = HfApi(token=token), type(self).__name__
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, **save_options)  # type: ignore[attr-defined]
            with hub_errors(repo_id):
                repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                if card is not None or not api.file_exists(repo, "README.md"):
                    write_file(folder / "README.md", (card or self.model_card(repo)).encode())
                message = commit_message or f"Upload {name}"
                commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        return commit.commit_url

    def model_card(self, repo_id: str) -> str:
        """A short model card: what it is and how to open it."""
        name = type(self).__name__
        unet: Any = getattr(self, "unet", self)
        what = f"A `{name}` with {unet.num_parameters():,} parameters"
        return CARD.format(title=repo_id.split("/")[-1], what=what, class_name=name, repo=repo_id)


def is_passing(error: Exception) -> bool:
    """Whether the hub gave no answer, or none for a fault of its own, or something else answered in its place."""
    status = getattr(getattr(error, "response", None), "status_code", 500)
    is_answer = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)
    return not is_answer and (status >= 500 or status in (408, 429))


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into one sentence each."""
    from huggingface_hub import errors

    try:
        yield
    except (PermissionError, NotADirectoryError):
        raise
    except errors.GatedRepoError:
        raise PermissionError(f"{repo} is gated: accept its terms on the hub, then pass token=...") from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{repo} on the hub has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(f"the hub has no repository {repo}; if private: token=...") from None
    except errors.LocalTokenNotFoundError:
        raise PermissionError("token=True, but no token is stored: run `hf auth login`, or pass token=...") from None
    except errors.HFValidationError as error:
        raise ValueError(f"{repo!r} is not a valid hub id: {error}") from None
    except Exception as error:
        if type(error) is FileNotFoundError:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise PermissionError(f"the hub does not let this token at {repo} ({reason})") from None
        if status is not None and not is_passing(error):
            raise FileNotFoundError(f"the hub could not give {repo} ({reason})") from None
        raise ConnectionError(
            f"the hub could not be reached for {repo}, or was cut off ({reason}): try again, what has arrived is kept"
        ) from None
