"""Settings of a training run."""

from ssmn.training.settings.files import (
    differences,
    extend,
    load_settings,
    override,
    settings_for,
    shipped_configs,
    to_toml,
)
from ssmn.training.settings.run import DataConfig, Examination, OptimisationConfig, TrainConfig, task_from_dict

__all__ = [
    "DataConfig",
    "Examination",
    "OptimisationConfig",
    "TrainConfig",
    "differences",
    "extend",
    "load_settings",
    "override",
    "settings_for",
    "shipped_configs",
    "task_from_dict",
    "to_toml",
]
