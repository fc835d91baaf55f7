"""Programs on the Hugging Face Hub: the file that `save` writes, and a card made of the results."""

import io
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_vae._version import __version__
from pyro_vae.arguments import shown, typed
from pyro_vae.errors import CheckpointError, ConfigError
from pyro_vae.extras import extra
from pyro_vae.program.program import Program
from pyro_vae.storage.bundle import bundle_path
from pyro_vae.storage.save import NAME, describe, save
from pyro_vae.threads import one_thread

ADDRESS = "hf://"
PICTURES = "results"  # of the card; no other pictures of a repository are touched
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@typed
@one_thread("push_to_hub")
def push_to_hub(
    program: Any, repo: str, *results: Any, private: bool = False, token: str | None = None
) -> str:
    """Save a program to a repository of the Hugging Face Hub, with a card made of its results.

    The card holds what each result prints, the figure that it draws, and the lines that load the
    program again. The repository is made where absent; what it held is replaced in one commit.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        repo: ``"owner/name"``.
        results: Answers of verbs for the card: ``pv.log_likelihood(program, test)``, a ``Run``.
        private: Whether a repository that is made is private.
        token: Of the Hub; None: the one that ``hf auth login`` keeps.

    Returns:
        The address that ``pv.load`` takes, ``"hf://owner/name"``.

    Raises:
        ConfigError: Another form of ``repo``, a result without a figure, or huggingface_hub is not
            installed (``pip install 'pyro-vae[hub]'``).
        CheckpointError: A weight is not finite, or the Hub refuses.
    """
    wrapped = Program.of(program)
    if not _REPO.fullmatch(repo):
        raise ConfigError(f"repo: got {repo!r}, expected 'owner/name'")
    for result in results:
        # A data frame has an attribute of this name too.
        if not (type(result).__module__.startswith("pyro_vae.") and hasattr(result, "plot")):
            raise ConfigError(f"results: got {shown(result)}, expected answers of verbs")
    with extra("hub", "push_to_hub"):
        from huggingface_hub import HfApi
    with tempfile.TemporaryDirectory() as home:
        save(program, home)
        _write_card(Path(home), wrapped, repo, results)
        hub = HfApi(token=token)
        with _told(ADDRESS + repo):
            hub.create_repo(repo, private=private, exist_ok=True)
            message = f"Save {repo} by pyro_vae {__version__}"
            # Pictures of an older card go with it.
            hub.upload_folder(
                repo_id=repo,
                folder_path=home,
                commit_message=message,
                delete_patterns=[f"{PICTURES}/*.png"],
            )
    return ADDRESS + repo


def fetched(address: str) -> Path:
    """Return the folder of a program of the Hub, ``hf://owner/name`` or ``hf://owner/name@tag``.

    Raises:
        ConfigError: Another form, or huggingface_hub is not installed.
        CheckpointError: The Hub does not give it.
    """
    repo, _, revision = address.removeprefix(ADDRESS).partition("@")
    if not _REPO.fullmatch(repo):
        raise ConfigError(f"folder: got {address!r}, expected 'hf://owner/name'")
    with extra("hub", "load"):
        from huggingface_hub import snapshot_download
    with _told(address):
        file = bundle_path("", NAME).name
        folder = snapshot_download(repo, revision=revision or None, allow_patterns=[file])
    return Path(folder)


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Say in one sentence what the Hub answered."""
    try:
        yield
    except Exception as error:  # its client raises errors of its own and of two libraries of HTTP
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{address}: {type(error).__name__}: {said}") from error


def _write_card(home: Path, program: Program, repo: str, results: tuple[Any, ...]) -> None:
    """Write README.md and the pictures that it shows."""
    made = describe(program)
    rebuilt = made["config"] is not None
    into = "" if rebuilt else ", into=program)  # your program, built as it was"
    lines = [
        *("---", "library_name: pyro-vae", "tags: [pyro, pytorch, pyro-vae]", "---", ""),
        *(f"# {repo.partition('/')[2]}", ""),
        f"`{made['program']}`, {made['parameters']:,} parameters ({made['dtype']}), saved by "
        f"pyro_vae {__version__}.",
        *("", "```python", "import pyro_vae as pv"),
        f'program = pv.load("{ADDRESS}{repo}"{into or ")"}',
        *("```", ""),
    ]
    (home / PICTURES).mkdir()
    for place, result in enumerate(results):
        picture = f"{PICTURES}/{type(result).__name__.lower()}-{place}.png"
        whole = io.BytesIO()
        result.plot().savefig(whole, format="png", facecolor="white")
        (home / picture).write_bytes(whole.getvalue())
        name = type(result).__name__
        lines += [f"## {name}", "", "```text", repr(result), "```", "", f"![{name}]({picture})", ""]
    (home / "README.md").write_text("\n".join(lines), encoding="utf-8")
