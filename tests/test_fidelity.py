"""docs/fidelity.md says of every loss what the code says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from monai_segloss.losses import TAXONOMY, LossRow

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "fidelity.md"
CONVENTIONS = (
    *("include_background", "to_onehot_y", "sigmoid", "softmax", "use_softmax", "other_act"),
    *("reduction", "batch", "weight", "ignore_index"),
)
TRAPS = 11


def tables() -> tuple[dict[str, list[str]], dict[int, str]]:
    """The cells of the losses' table by name, and the tests of the traps by number."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    losses = {row[0].strip("`"): row for row in rows if row[0].startswith("`")}
    return losses, {int(row[0]): row[2] for row in rows if row[0].isdecimal()}


def defaults(row: LossRow) -> str:
    shown = []
    for name, parameter in inspect.signature(row.build).parameters.items():
        value = parameter.default
        fixed = name in CONVENTIONS or name in row.options
        if not fixed and value is not inspect.Parameter.empty:
            shown.append(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}")
    return f"`{', '.join(shown)}`" if shown else "—"


def test_every_loss_has_a_row_and_every_row_a_loss() -> None:
    assert list(tables()[0]) == list(TAXONOMY)


@pytest.mark.parametrize("name", TAXONOMY)
def test_row_says_what_the_code_says(name: str) -> None:
    row, cells = TAXONOMY[name], tables()[0][name]
    assert len(cells) == 8
    assert all(cells)
    assert cells[1] == f"{row.class_name} ({row.owner})"
    assert cells[3] == row.source
    assert cells[4] == defaults(row)


def test_every_trap_names_its_tests() -> None:
    text = (ROOT / "tests" / "test_traps.py").read_text(encoding="utf-8")
    written = re.findall(r"^def (test_trap_(\d+)_\w+)", text, flags=re.MULTILINE)
    named = tables()[1]
    assert list(named) == list(range(1, TRAPS + 1))
    for number, cell in named.items():
        assert cell == ", ".join(f"`{test}`" for test, n in written if int(n) == number)
        assert cell


def test_the_tests_and_files_it_names_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|benchmarks)/\w+\.py)`", text):
        assert (ROOT / path).is_file(), path
    known = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in known, test
