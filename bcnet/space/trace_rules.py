"""The rules for operators, by name: how the channels of outputs depend on those of inputs.

In: an operator's call, and the `Record` of the traced network. `follow` applies the rule of the call's
operator; without a rule, the channels of its arguments are pinned, with its name as the reason.
"""

from collections.abc import Callable

import torch

from bcnet.space import trace_entry_rules as entries
from bcnet.space import trace_layer_rules as layers
from bcnet.space.trace_record import Call, Record

MOVES = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "select"),
        *("unbind", "squeeze", "unsqueeze", "expand", "repeat", "flip"),
        *("roll", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "lift_fresh"),
        *("movedim", "flatten", "unflatten", "narrow", "native_channel_shuffle"),
    )
)
# Operators that keep the first two axes, (N, C), and change the others.
SPATIAL = frozenset(
    (
        *("max_pool1d", "max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices"),
        *("avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool1d"),
        *("upsample_nearest1d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_nearest3d"),
        *("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
        *("upsample_linear1d", "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d"),
        *("reflection_pad3d", "replication_pad3d"),
        *("replication_pad1d", "replication_pad2d", "grid_sampler_2d", "roi_align", "roi_pool"),
    )
)
REDUCE = frozenset(
    (
        *("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod"),
        *("linalg_vector_norm", "norm", "logsumexp", "any", "all", "argmax", "argmin"),
    )
)
# Operators that keep the shape, and that PyTorch does not tag as pointwise.
SAME_SHAPE = frozenset(
    (
        *(
            "hardswish",
            "hardtanh",
            "native_dropout",
            "dropout",
            "feature_dropout",
            "bernoulli",
            "fill",
            "copy",
        ),
        *("zero", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "clone"),
        *("_to_copy", "contiguous", "where", "masked_fill", "_softmax", "_log_softmax", "softmax", "cumsum"),
        *("_safe_softmax", "uniform", "normal", "_prelu_kernel", "prelu", "rrelu_with_noise"),
    )
)
ALONG = frozenset(("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "cumsum"))
RANDOM = frozenset(("bernoulli", "uniform", "normal", "rand", "randn", "rand_like", "randn_like"))
BATCH_NORM = frozenset(
    (
        *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
        *("_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "batch_norm"),
    )
)
# Operators that create tensors from sizes that the forward computes.
MADE = frozenset(
    (
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zeros", "ones", "full"),
        *("empty", "empty_strided", "arange", "linspace"),
    )
)
WITHOUT_CHANNELS = MADE | {"expand", "repeat"}  # traced even without channels in their arguments
CONVOLUTION = frozenset(("convolution", "_convolution", "conv1d", "conv2d", "conv3d"))
MATMUL = frozenset(("mm", "bmm", "addmm", "baddbmm", "matmul", "linear"))
ATTENTION = frozenset(
    (
        *("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"),
        *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
        *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_attention_math"),
    )
)
# Operators of several layers, each applied to every token.
FUSED = frozenset(
    (
        *("_native_multi_head_attention", "_transformer_encoder_layer_fwd", "mkldnn_rnn_layer", "_cudnn_rnn"),
        "miopen_rnn",
    )
)
SPLIT = frozenset(("split", "chunk", "split_with_sizes"))

Rule = Callable[[Record, Call], None]
RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME_SHAPE, entries.pointwise),
    **dict.fromkeys(ALONG, entries.along_axis),
    **dict.fromkeys(MOVES, entries.move),
    **dict.fromkeys(SPLIT, entries.split),
    **dict.fromkeys(("cat", "stack"), entries.concatenate),
    **dict.fromkeys(CONVOLUTION, layers.convolution),
    **dict.fromkeys(MATMUL, layers.matmul),
    **dict.fromkeys(ATTENTION, layers.attention),
    **dict.fromkeys(BATCH_NORM, layers.batch_norm),
    **dict.fromkeys(SPATIAL, entries.spatial),
    **dict.fromkeys(REDUCE, entries.reduce),
    **dict.fromkeys(MADE, entries.make),
    "alias": entries.alias,
    "detach": entries.alias,
    "expand": entries.expand,
    "index": entries.pick,
    "index_select": entries.pick,
    "repeat": entries.expand,
    "slice": entries.take_slice,
    "constant_pad_nd": entries.pad_constant,
    "native_layer_norm": layers.layer_norm,
    "native_group_norm": layers.group_norm,
    "glu": entries.gate,
}


def follow(record: Record, call: Call) -> None:
    """Apply the operator's rule; an unknown operator pins the channels of its arguments."""
    rule = RULES.get(call.name)
    if call.name == "as_strided" and call.tensors[0].shape == call.outputs[0].shape:
        entries.relayout(record, call)
    elif rule is not None:
        rule(record, call)
    elif torch.Tag.pointwise in call.func.tags:
        entries.pointwise(record, call)
    else:
        entries.unknown(record, call)
        if call.name in FUSED:
            layers.fused(record, call)
