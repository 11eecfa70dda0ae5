"""The demonstration and the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from monai_segloss import __version__, bundle, demo
from monai_segloss.__main__ import main
from monai_segloss.bundle import bundle_names, bundle_path, copy_bundle
from monai_segloss.demo import bundle_command, run_demo
from monai_segloss.losses import TAXONOMY


@pytest.mark.slow
def test_demo_leaves_table_metrics_and_picture(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    summary = run_demo(tmp_path / "out", patients=2, epochs=1, epoch_length=2)
    printed = capfd.readouterr().out
    for part in ("HD (mm)", "HD95 (mm)", "RV", "Myo", "LV", "overview.png", "--loss-name dice_ce"):
        assert part in printed
    written = json.loads((tmp_path / "out" / "eval" / "metrics.json").read_text())
    assert written["summary"] == summary
    # Two patients: the even one trained, both frames of the odd one were evaluated.
    assert [row["case"][:10] for row in written["cases"]] == ["patient001"] * 2
    assert 0 <= summary["dice"]["mean"] < 1
    assert (tmp_path / "out" / "eval" / "overview.png").stat().st_size > 10_000
    assert len((tmp_path / "out" / "models" / "training.csv").read_text().splitlines()) == 2


def test_demo_tells_which_command_failed() -> None:
    with pytest.raises(RuntimeError, match=r"status 3: .* -c raise SystemExit\(3\)"):
        demo._run([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_name": "rwr"}, "did you mean 'rrw'"),
        ({"patients": 1}, "patients: expected at least 2, got 1"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
    ],
)
def test_demo_refuses_before_it_works(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run_demo(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_bundle_command_overrides(tmp_path: Path) -> None:
    command = bundle_command(tmp_path, ["train.json", "evaluate.json"], {"width": 8})
    assert command[-1] == "--width=8"
    assert str(
        [str(tmp_path / "configs" / n) for n in ("train.json", "evaluate.json")]
    ) in " ".join(command)


def test_losses_lists_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(TAXONOMY)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


def test_phantom_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", str(tmp_path), "--patients", "1", "--seed", "3"]) == 0
    assert (tmp_path / "training" / "patient001" / "Info.cfg").is_file()
    assert main(["phantom", str(tmp_path), "--patients", "1", "--seed", "4"]) == 1
    assert "error: " in capsys.readouterr().err


def test_bundle_list_and_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "list"]) == 0
    assert capsys.readouterr().out.split() == bundle_names()
    assert main(["bundle", "copy", "acdc17", str(tmp_path)]) == 0
    copied = tmp_path / "acdc17"
    assert (copied / "configs" / "train.json").read_text() == (
        bundle_path("acdc17") / "configs" / "train.json"
    ).read_text()
    assert main(["bundle", "copy", "acdc17", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_bundle_is_found_where_the_wheel_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_bundle("acdc17", tmp_path / "bundles")
    monkeypatch.setattr(bundle, "_PLACES", (tmp_path / "bundles", tmp_path / "absent"))
    assert bundle_names() == ["acdc17"]
    assert bundle_path("acdc17") == tmp_path / "bundles" / "acdc17"


def test_unknown_bundle() -> None:
    with pytest.raises(ValueError, match=r"bundle: expected one of acdc17.*got 'acdc18'"):
        bundle_path("acdc18")
