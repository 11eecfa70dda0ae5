"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from monai.utils import set_determinism

# Several test processes run beside one another: one thread each.
torch.set_num_threads(1)

# The same examples in every run, and no deadline: a first call may import or compile.
settings.register_profile(
    "repository",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repository")

DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append("cuda")


@pytest.fixture(
    params=[pytest.param(d, marks=[pytest.mark.gpu] if d == "cuda" else []) for d in DEVICES]
)
def devices(request: pytest.FixtureRequest) -> torch.device:
    """The device a test runs on: the CPU, and then again CUDA where there is one."""
    return torch.device(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(20220707)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: MONAI_SEGLOSS_DATA, or shared/data beside the checkout."""
    data = os.environ.get("MONAI_SEGLOSS_DATA")
    return Path(data) if data else Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def tidy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bundle sets seeds, cuDNN and Python's path for the whole process; take that back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    yield
    set_determinism(seed=None)
