"""MONAI's AutoRunner as a user runs it, in a process of its own: ``auto3dseg_run.py JSON``.

Two sets of templates in one process would share ``sys.modules``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from monai.apps.auto3dseg import AutoRunner


def run(settings: dict[str, Any]) -> None:
    """Analyse, generate, train and ensemble.

    Args:
        settings: AutoRunner's ``work_dir``, ``input``, ``templates_path_or_url``, ``algos``; the
            ``train_params``, None to stop when bundles are generated; ``n_best`` for the ensemble.
    """
    train_params = settings["train_params"]
    runner = AutoRunner(
        work_dir=settings["work_dir"],
        input=settings["input"],
        algos=settings["algos"],
        templates_path_or_url=settings["templates_path_or_url"],
        allow_skip=False,
        train=train_params is not None,
        ensemble=train_params is not None,
    )
    runner.set_num_fold(1)
    runner.set_device_info(cmd_prefix=sys.executable)
    runner.set_analyze_params({"do_ccp": False, "device": "cpu"})
    runner.set_training_params(train_params)
    runner.set_ensemble_method("AlgoEnsembleBestN", n_best=settings["n_best"])
    if "swinunetr" not in settings["algos"]:
        runner.run()
        return
    # It asks for the GPU's memory to choose its number of crops; on a CPU it cannot train anyway.
    memory = (16 * 1024**3, 16 * 1024**3)
    with (
        mock.patch("torch.cuda.device_count", return_value=1),
        mock.patch("torch.cuda.mem_get_info", return_value=memory),
    ):
        runner.run()


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
