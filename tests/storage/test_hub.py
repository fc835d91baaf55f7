"""Programs on the Hub: what is pushed comes back, under a stub of the Hub's client."""

import shutil
import sys
from types import SimpleNamespace

import pandas
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, ConfigError

HISTORY = {"epoch": torch.arange(3.0), "loss": torch.tensor([3.0, 2.0, 1.0])}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub in a folder, with the calls of its client that are used, as it has them."""

    class HfApi:
        def __init__(self, *, token=None):
            self.token = token

        def create_repo(self, repo_id, *, private=False, exist_ok=False):
            assert exist_ok and not private and self.token == "t"
            (tmp_path / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
            assert "pyro_vae" in commit_message
            for pattern in delete_patterns:
                for old in (tmp_path / repo_id).glob(pattern):
                    old.unlink()
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)

    def snapshot_download(repo_id, *, revision=None, allow_patterns=None):
        assert allow_patterns == ["program.safetensors"] and revision in (None, "v1")
        if not (tmp_path / repo_id).exists():
            raise OSError(f"404 Client Error.\n\nRepository Not Found: {repo_id}")
        return str(tmp_path / repo_id)

    stub = SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    return tmp_path


def test_what_is_pushed_comes_back_with_a_card(hub):
    vae = pv.models.VAE(6, 2, (4,))
    run = pv.Run(vae, HISTORY, 3, 3, torch.device("cpu"))
    found = pv.log_likelihood(vae, torch.ones(5, 6), num_particles=9)
    address = pv.push_to_hub(vae, "me/digits", run, found, token="t")
    assert address == "hf://me/digits"
    for name in (address, f"{address}@v1"):
        back = pv.load(name)
        assert all(torch.equal(v, back.state_dict()[k]) for k, v in vae.state_dict().items())
    card = (hub / "me" / "digits" / "README.md").read_text()
    assert repr(found) in card and 'pv.load("hf://me/digits")' in card and "`VAE`, " in card
    for picture in ("results/run-0.png", "results/loglikelihood-1.png"):
        assert f"({picture})" in card
        assert (hub / "me" / "digits" / picture).read_bytes().startswith(b"\x89PNG")
    (hub / "me" / "digits" / "banner.png").touch()
    pv.push_to_hub(vae, "me/digits", found, token="t")
    pictures = sorted(path.name for path in (hub / "me" / "digits").rglob("*.png"))
    assert pictures == ["banner.png", "loglikelihood-0.png"]


def test_a_program_of_ones_own_is_loaded_into_one(hub):
    pair = pv.Program(lambda x: None, lambda x: None, modules={"net": torch.nn.Linear(2, 2)})
    pv.push_to_hub(pair, "me/own", token="t")
    assert "into=program)" in (hub / "me" / "own" / "README.md").read_text()
    with pytest.raises(CheckpointError, match="into=program"):
        pv.load("hf://me/own")


@pytest.mark.parametrize("repo", ["digits", "", "me/my digits", "../me/digits"])
def test_other_names_are_refused(repo):
    with pytest.raises(ConfigError, match="owner/name"):
        pv.push_to_hub(pv.models.VAE(6, 2, (4,)), repo)
    with pytest.raises(ConfigError, match="owner/name"):
        pv.load(f"hf://{repo}")
    with pytest.raises(ConfigError, match=r"folder: got 'hf://.*; pv\.push_to_hub writes to the"):
        pv.save(pv.models.VAE(6, 2, (4,)), f"hf://{repo}")


def test_what_the_hub_says_is_one_sentence(hub):
    with pytest.raises(CheckpointError, match=r"^hf://me/none: OSError: 404 .*me/none$") as caught:
        pv.load("hf://me/none")
    assert "\n" not in str(caught.value)
    for result in (3, pandas.DataFrame({"a": [1, 2]})):
        with pytest.raises(ConfigError, match=r"results: got .* expected answers of verbs"):
            pv.push_to_hub(pv.models.VAE(6, 2, (4,)), "me/digits", result)


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'pyro-vae\[hub\]'"):
        pv.load("hf://me/digits")
