"""The registry of rules for operators: how the channels of outputs depend on those of inputs.

In: an operator's call, and the `Record` of the traced network. Out: entries of the record. A rule is a
function that is decorated with the names of its operators:

    @rule("cat")
    def concatenate(record: Record, call: Call) -> None: ...

`trace_view_rules.py` has the rules for operators that move entries (views, slices, `cat`),
`trace_entry_rules.py` for those that combine them (sums, reductions), `trace_layer_rules.py` for layers.
"""

from collections.abc import Callable

from bcnet.space.trace_record import Call, Record

Rule = Callable[[Record, Call], None]
RULES: dict[str, Rule] = {}
ALWAYS: set[str] = set()  # operators that are followed even where no argument carries channels
RANDOM = frozenset(("bernoulli", "uniform", "normal", "rand", "randn", "rand_like", "randn_like"))


def rule(*names: str, always: bool = False) -> Callable[[Rule], Rule]:
    """Make a function the rule of these operators, as PyTorch names them, without the `_` of in-place ones.

    Raises ValueError where one of them has a rule already.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"operator '{name}' has a rule already: {RULES[name].__qualname__}")
            RULES[name] = function
        if always:
            ALWAYS.update(names)
        return function

    return register


def unknown(record: Record, call: Call) -> None:
    """An operator without a rule: the channels of its arguments are frozen, with its name as the reason."""
    reason = record.unknown(call.name)
    for tensor in call.tensors:
        record.pin(tensor, reason)
    record.lose(call.outputs, reason)
