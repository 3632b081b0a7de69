"""`bcnet one-bit`: which layers of a network that can be binary should be."""

import json
import sys
from contextlib import redirect_stdout

from bcnet.commands.options import TARGET, Given, Json, with_settings
from bcnet.show.precisions import show_precisions


@with_settings(*TARGET, "search.latency", "search.latency_ms", "seed", without=("60% if no budget",))
def one_bit(given: Given, as_json: Json = False) -> None:
    """Choose which layers have one bit, and which stay real. Measures both forms of each layer on the device,
    and what each loses in the trained real network, and finds the precisions and widths of the least loss
    within the budget; without one, within the latency of the network with all of these layers binary. The
    layers are an argument of the network, which is then trained."""
    from bcnet.built_in_example import require_configured

    settings = given.config()
    require_configured("one-bit", given.file, None, settings)
    with redirect_stdout(sys.stderr):
        from bcnet.pipeline.layer_precisions import choose_precisions
        from bcnet.pipeline.open_problem import open_problem

        found = choose_precisions(open_problem(settings))
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        show_precisions(found)
