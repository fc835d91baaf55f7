"""A folder of programs and data, and the figures of a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import GLOBALS, PROGRAM, run
from PIL import Image
from scipy import sparse


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a program, and the same counts in each kind of file."""
    monkeypatch.chdir(tmp_path)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    x = torch.poisson(torch.full((40, 5), 2.0))
    Path("own.py").write_text(PROGRAM)
    Path("globals.py").write_text(GLOBALS)
    Path("syntax.py").write_text("def (")
    Path("script.py").write_text("raise SystemExit(0)")
    np.savez("counts.npz", x=x.numpy().astype(np.uint16))
    np.savez("two.npz", x=(x > 1).numpy(), c=np.arange(40) % 3)
    beyond = sparse.csr_matrix(np.eye(40, 5, dtype=np.float32))
    beyond.indices[0] = 10**6  # of 5 columns
    sparse.save_npz("beyond.npz", beyond)
    np.savez("named.npz", images=np.ones((40, 2)), labels=np.arange(40) % 3)
    np.savez("labelled.npz", x=x.numpy().astype(np.uint16), y=np.arange(40) % 3)
    words, kept = x.clamp(max=3).numpy().astype(np.uint8), np.ones((40, 5), bool)
    np.savez("text.npz", words=words, lengths=np.arange(40) % 5 + 1, kept=kept)
    np.savez("ragged.npz", x=np.ones((40, 2)), y=np.ones((30, 2)))
    np.savez("words.npz", x=np.full((40, 2), "a"))
    np.savez("few.npz", x=np.ones((4, 2)))
    Path("torn.npz").write_bytes(b"PK no")
    Path("text.npy").write_text("words")
    Path("semi.csv").write_text("a;b\n" + "1,5;2\n" * 40)
    Path("points.csv").write_text("a;b\n" + "1.5;2\n" * 40)
    Path("holes.csv").write_text("a,b,age,d,e\n1,2,,4,5\n" + "1,2,3,4,5\n" * 40)
    Path("torn.pt").write_bytes(b"PK no")
    Path("empty.pt").touch()
    np.save("counts.npy", x.numpy())
    np.save("bits.npy", (x > 1).numpy())
    torch.save(x.double(), "counts.pt")
    lines = [",".join("abcde"), *(",".join(str(int(v)) for v in row) for row in x)]
    Path("counts.csv").write_text("\n".join(lines))
    Path("images").mkdir()
    for n in range(20):
        Image.fromarray(np.full((4, 4), n * 12, np.uint8)).save(f"images/{n:02d}.png")
    yield tmp_path
    torch.random.set_rng_state(state)


@pytest.fixture
def judged(capsys):
    def judged(line):
        assert run(f"evaluate {line} --num_particles 2") == 0
        out, err = capsys.readouterr()
        return out.partition(" data\n")[2].partition("written")[0], err

    return judged
