"""Binary layers in OpenVINO. In: a network as read or as compiled. Out: names of the file's nodes.

`bcnet.runtimes.openvino` makes these checks whenever it loads a network, so a table, an export or a latency
never has a binary layer that is computed in floats. The functions are the agent's, because a device over ssh
checks what it loads itself.
"""

from bcnet.agent.openvino_graph import (
    Layer,
    binary_layers,
    binary_layers_not_u1,
    equal_thresholds,
    executed,
)

__all__ = ["Layer", "binary_layers", "binary_layers_not_u1", "equal_thresholds", "executed"]
