"""The README's code runs as it stands: a quick start that is broken is worse than none."""

import os
import re
import subprocess
import sys
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


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_block_runs(number: int, tmp_path: Path) -> None:
    code = BLOCKS[number] if number == 0 else READERS_OWN + BLOCKS[number]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if number == 0:
        assert "LogLikelihood(mean=-1" in done.stdout  # a number of nats that a VAE can have
        assert (tmp_path / "runs" / "digits" / "program.safetensors").exists()
