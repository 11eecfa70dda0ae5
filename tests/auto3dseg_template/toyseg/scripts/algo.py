"""Fills the template from what the data analysis found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.apps.auto3dseg import BundleAlgo
from monai.bundle import ConfigParser


class ToysegAlgo(BundleAlgo):
    """The name is the folder's, capitalised, and ``Algo``: AutoRunner looks for it so."""

    def fill_template_config(
        self, data_stats_file: str, output_path: str, **kwargs: Any
    ) -> dict[str, Any]:
        """Write classes, channels, resolution and paths into the bundle."""
        given = ConfigParser.load_config_file(self.data_list_file)
        stats = ConfigParser(globals=False)
        stats.read_config(data_stats_file)
        records = {
            "bundle_root": output_path,
            "data_file_base_dir": given.pop("dataroot"),
            "data_list_file_path": given.pop("datalist"),
            "input_channels": int(stats["stats_summary#image_stats#channels#max"]),
            "output_classes": len(stats["stats_summary#label_stats#labels"]),
            "resample_resolution": list(stats["stats_summary#image_stats#spacing#median"]),
            **given,
        }
        path = Path(output_path) / "configs" / "hyper_parameters.yaml"
        parser = ConfigParser(globals=False)
        parser.read_config(str(path))
        for key, value in {**records, **kwargs}.items():
            parser[key] = value
        ConfigParser.export_config_file(
            parser.get(), str(path), fmt="yaml", default_flow_style=None, sort_keys=False
        )
        return {"hyper_parameters.yaml": records}
