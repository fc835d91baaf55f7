"""The README: short, its links lead somewhere, its code runs and prints what it says it prints."""

import re
from pathlib import Path

import pyro
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# What another machine may change: means little, errors, effective draws and tails more.
MEANS, OTHERS = 0.05, 0.9


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 110
    prose = re.sub(r"```.*?```|<!-- table.*?/table -->", "", README, flags=re.DOTALL)
    assert len(prose.encode()) <= 6000


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", README)
    assert len(links) > 20
    assert [x for x in links if "://" not in x and not (ROOT / x).exists()] == []


def test_its_code_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder of its own; any warning is an error."""
    monkeypatch.chdir(tmp_path)
    (block,) = BLOCKS
    exec(block, {})
    pyro.clear_param_store()
    told = re.findall(r"^# (.*)$", block, re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert [NUMBER.sub("#", line) for line in printed] == [NUMBER.sub("#", line) for line in told]
    for said, is_ in zip(told, printed, strict=True):
        first, *others = zip(NUMBER.findall(said), NUMBER.findall(is_), strict=True)
        assert float(first[1]) == pytest.approx(float(first[0]), rel=MEANS)
        for before, now in others:
            assert float(now) == pytest.approx(float(before), rel=OTHERS, abs=3)
    assert (tmp_path / "clicks" / "program.safetensors").exists()
