"""Print which layers are binary, and what each form of a layer takes and loses."""

import json
from typing import TYPE_CHECKING

from bcnet.plain import counted, loss_text, milliseconds
from bcnet.show.tables import put, show_table

if TYPE_CHECKING:
    from bcnet.pipeline.layer_precisions import LayerPrecisions


def show_precisions(found: "LayerPrecisions") -> None:
    """A row a layer, in order of execution; then the network, and the setting that makes it."""
    rows = [
        [
            own.name,
            f"{own.in_channels}->{own.out_channels}",
            milliseconds(own.one_bit_ms),
            milliseconds(own.real_ms),
            loss_text(own.loss),
            "1 bit" if own.binary else found.precision,
        ]
        for own in found.layers
    ]
    show_table(["layer", "channels", "1 bit (ms)", f"{found.precision} (ms)", "1 bit loses", "chosen"], rows)
    count = f"one bit in {len(found.binary)} of {counted(len(found.layers), 'layer')}"
    put(
        f"network   {'-'.join(map(str, found.widths))}, {count}: {milliseconds(found.predicted_ms)} ms "
        f"predicted, within {milliseconds(found.limit_ms)} ms",
        f"full      {milliseconds(found.full_real_ms)} ms with all layers in {found.precision}, "
        f"{milliseconds(found.full_one_bit_ms)} ms with one bit in all of them",
        f"table     off by {found.table_error:.1%} on whole networks, noise {found.noise:.1%}; one fit for "
        f"all precisions differs by {found.fit_error:.1%} from that of each network",
        f"set       [model] args: binary = {json.dumps(list(found.binary))}",
    )
