"""The README's code runs as it stands: a quick start that is broken is worse than none."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# The second block defines a program and trains it on data that the reader has.
READERS_OWN = """
import pyro
import pyro.distributions as dist
import pyro_vae as pv
import torch
counts = torch.poisson(torch.full((500, 10), 3.0))
"""


def test_there_are_two() -> None:
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("number", [0, 1])
def test_a_block_runs(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a namespace and a folder of its own; any warning is an error."""
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[number] if number == 0 else READERS_OWN + BLOCKS[number], {})
    if number == 0:
        assert "LogLikelihood(mean=-1" in capsys.readouterr().out  # nats that a VAE can have
        assert (tmp_path / "runs" / "digits" / "program.safetensors").exists()
