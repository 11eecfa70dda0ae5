"""Run MONAI's AutoRunner as a user would, in a process of its own: ``python auto3dseg_run.py JSON``.

Two sets of templates in one process would share ``sys.modules``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from monai.apps.auto3dseg import AutoRunner


def run(settings: dict[str, Any]) -> None:
    """Analyse, generate, train and ensemble.

    Args:
        settings: AutoRunner's ``work_dir``, ``input``, ``templates_path_or_url``, ``algos``; and
            ``train_params``, ``n_best`` for the ensemble.
    """
    runner = AutoRunner(
        work_dir=settings["work_dir"],
        input=settings["input"],
        algos=settings["algos"],
        templates_path_or_url=settings["templates_path_or_url"],
        allow_skip=False,
    )
    runner.set_num_fold(1)
    runner.set_device_info(cmd_prefix=sys.executable)
    runner.set_analyze_params({"do_ccp": False, "device": "cpu"})
    runner.set_training_params(settings["train_params"])
    runner.set_ensemble_method("AlgoEnsembleBestN", n_best=settings["n_best"])
    runner.run()


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
