"""Presets: settings of published systems as their authors run them. In: a name. Out: values by section.

Where a setting here differs from a default, docs/concepts/published-bcnet.md says why. What depends on the
data, such as epochs and learning rate, is not part of a preset.
"""

from collections.abc import Mapping
from typing import Any, Literal

from bcnet.config.section import Section

PresetName = Literal["bcnet-paper", "bcnetv2-paper"]

# From the released trainers of BCNet (CVPR 2021) and BCNetV2 (github.com/xiusu/BCNetV2). `search.generations`
# does not count the first one.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "bcnet-paper": {
        "space": {"bins": 20, "min_width": 0.05, "channel_multiple": 1},
        "train": {"method": "bcnet", "step": "interleaved", "complementary": True},
        "search": {"method": "evolution", "population": 40, "generations": 79},
    },
    # 20 equal steps without the five narrowest choices.
    "bcnetv2-paper": {
        "space": {"bins": 15, "min_width": 0.3, "channel_multiple": 1},
        "train": {"method": "bcnetv2", "step": "plain", "complementary": True},
        "search": {
            "method": "evolution",
            "population": 80,
            "generations": 39,
            "mutation": 0.1,
            "mutate_from": "prior",
        },
    },
}


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration, completed by those of the preset that it names.

    A preset that does not exist is left to the validation.
    """
    found = dict(values)
    name = found.get("preset")
    for section, preset in PRESETS.get(name, {}).items() if isinstance(name, str) else ():
        own = found.get(section, {})
        if isinstance(own, Section):
            own = own.model_dump(exclude_unset=True)
        if isinstance(own, Mapping):
            found[section] = {**preset, **own}
    return found
