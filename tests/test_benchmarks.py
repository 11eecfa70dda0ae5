"""The benchmarks run, and what they compare agrees. Nothing here is about time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maps", "losses", "epoch", "taxonomy", "bundles"])
def test_benchmark_runs_and_its_contestants_agree(name: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    script = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--output", str(result)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(result.read_text())
    assert report["rows"]
    differences = [row["differs_by"] for row in report["rows"] if row.get("differs_by") is not None]
    assert differences or name in ("epoch", "bundles")
    assert all(0 <= difference <= 1e-5 for difference in differences)
