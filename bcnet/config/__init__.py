"""bcnet.toml and what was typed, checked, as one configuration. Unknown keys and wrong types are errors.

In: a TOML file (or nothing) and values from flags. Out: `Config`. A section is a model in a file of its own.
Each field's description and example are also the comment that `bcnet init` writes and the help of its
option, so the documentation cannot drift from what is read.
"""

from bcnet.config.assignments import assigned
from bcnet.config.config import Config
from bcnet.config.data import DataConfig
from bcnet.config.deliver import ExportConfig, SliceConfig
from bcnet.config.keys import section_of, settings, values_by_name
from bcnet.config.load import CONFIG_FILE, EXAMPLE, explained, is_example, load_config
from bcnet.config.network import PRETRAINED, ModelConfig, SpaceConfig, TaskConfig
from bcnet.config.search import BUDGETS, LATENCY_BUDGETS, SearchConfig
from bcnet.config.section import Section, latency_share
from bcnet.config.template import template, toml
from bcnet.config.train import RENAMED_STEPS, TrainConfig

__all__ = [
    "BUDGETS",
    "CONFIG_FILE",
    "EXAMPLE",
    "LATENCY_BUDGETS",
    "PRETRAINED",
    "RENAMED_STEPS",
    "Config",
    "DataConfig",
    "ExportConfig",
    "ModelConfig",
    "SearchConfig",
    "Section",
    "SliceConfig",
    "SpaceConfig",
    "TaskConfig",
    "TrainConfig",
    "assigned",
    "explained",
    "is_example",
    "latency_share",
    "load_config",
    "section_of",
    "settings",
    "template",
    "toml",
    "values_by_name",
]
