"""Operators that an exported program may name: those that compute all of what they answer from what they are given.

Left out are operators that answer with memory as the allocator gives it, or that look past a tensor's own elements: what lies there was
another request's. So are the forms behind an operator that trust the sizes and choices which it has checked: a file names them with others, and
they read beyond their tensors or leave their answer unwritten (`grid_sampler_2d`, `native_batch_norm`, `_reshape_alias`). Left out as well are those of one library's kernels, of training, of sparse and quantised tensors, and those that touch files
or settings of the process. An operator in place, `relu_`, is as good as `relu`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch._ops import OpOverload

__all__ = ["find_retained", "is_allowed", "zero_new_memory"]

_NAMES: Final = """
abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr angle asin asinh atan atan2 atanh arccos arccosh arcsin
arcsinh arctan arctan2 arctanh baddbmm bilinear bmm ceil celu chain_matmul clamp clamp_max clamp_min clip complex conj
conj_physical copysign cos cosh cross deg2rad digamma div divide dot einsum elu erf erfc erfinv exp exp2 expm1 fix float_power
floor floor_divide fmax fmin fmod frac frexp gcd gelu ger glu hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 igamma
igammac imag inner isclose kron lcm ldexp leaky_relu lerp lgamma linear log log10 log1p log2 log_sigmoid log_sigmoid_forward
logaddexp logaddexp2 logit logsumexp matmul maximum minimum mish mm mul multiply mv mvlgamma nan_to_num neg negative nextafter
outer polar polygamma positive pow prelu rad2deg real reciprocal relu relu6 remainder round rrelu rsqrt rsub selu sgn sigmoid sign
signbit silu sin sinc sinh softplus softshrink sqrt square sub subtract tan tanh tensordot threshold true_divide trunc vdot xlogy
_conj _conj_physical _neg_view _prelu_kernel _trilinear resolve_conj resolve_neg

special_digamma special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1
special_gammainc special_gammaincc special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p
special_log_ndtr special_log_softmax special_logit special_logsumexp special_multigammaln special_ndtr special_ndtri
special_polygamma special_psi special_round special_sinc special_softmax special_xlog1py special_xlogy special_zeta

__and__ __or__ __xor__ bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor eq equal ge greater
greater_equal gt isfinite isin isinf isnan isneginf isposinf isreal le less less_equal logical_and logical_not logical_or
logical_xor lt ne not_equal allclose

all amax amin aminmax any argmax argmin argsort bincount bucketize cdist corrcoef count_nonzero cov cummax cummin cumprod cumsum
cumulative_trapezoid diff dist frobenius_norm gradient histc kthvalue logcumsumexp max mean median min mode msort nanmean
nanmedian nanquantile nansum native_norm nonzero nonzero_numpy nonzero_static argwhere norm nuclear_norm pairwise_distance pdist
prod quantile renorm searchsorted sort std std_mean sum sum_to_size topk trace trapezoid trapz unique_consecutive unique_dim
unique_dim_consecutive var var_mean _cdist_forward _euclidean_dist _pdist_forward _unique _unique2

adjoint alias atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cartesian_prod cat chunk clone
column_stack combinations concat concatenate constant_pad_nd contiguous copy detach diag diag_embed diagflat diagonal
diagonal_copy diagonal_scatter dsplit dstack expand expand_as expand_copy fill fill_diagonal flatten flip fliplr flipud
flatten_dense_tensors gather hsplit hstack index index_add index_copy index_fill index_put index_reduce index_select lift
lift_fresh lift_fresh_copy mH mT masked_fill masked_scatter masked_select matrix_H meshgrid moveaxis movedim narrow narrow_copy
numpy_T one_hot pad pad_sequence permute permute_copy pixel_shuffle pixel_unshuffle put ravel repeat repeat_interleave reshape
reshape_as roll rot90 row_stack scatter scatter_add scatter_reduce select select_copy select_scatter slice slice_copy
slice_scatter split split_copy split_with_sizes split_with_sizes_copy squeeze squeeze_copy stack swapaxes swapdims t t_copy take
take_along_dim tensor_split tile transpose transpose_copy tril triu unbind unbind_copy unflatten unfold unfold_copy unsafe_chunk
unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy vander view view_as view_as_complex view_as_real view_copy vsplit
vstack where zero _unsafe_view

arange bartlett_window blackman_window eye fft_fftfreq fft_rfftfreq full full_like hamming_window hann_window kaiser_window
linspace logspace new_full new_ones new_zeros ones ones_like range scalar_tensor tril_indices triu_indices zeros zeros_like
bernoulli multinomial normal normal_functional poisson rand rand_like randint randint_like randn randn_like randperm uniform

can_cast dim is_complex is_floating_point is_nonzero is_same_size is_signed item numel promote_types requires_grad result_type
size stride sym_constrain_range sym_constrain_range_for_size sym_is_contiguous sym_numel sym_size sym_storage_offset
sym_stride to type_as _assert_async _assert_scalar _assert_tensor_metadata _cast_Byte _cast_Char _cast_Double _cast_Float
_cast_Half _cast_Int _cast_Long _cast_Short _local_scalar_dense _to_copy

adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
affine_grid_generator alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm channel_shuffle col2im conv1d conv2d conv3d
conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution cosine_similarity dropout embedding embedding_bag
feature_alpha_dropout feature_dropout group_norm gru gru_cell im2col instance_norm
layer_norm log_softmax lstm lstm_cell max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
max_pool3d_with_indices max_unpool2d max_unpool3d native_channel_shuffle native_dropout native_group_norm
native_layer_norm reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell scaled_dot_product_attention softmax upsample_bicubic2d
upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
fake_quantize_per_channel_affine fake_quantize_per_tensor_affine _adaptive_avg_pool2d _adaptive_avg_pool3d
_convolution _convolution_mode _fused_rms_norm _log_softmax
_native_multi_head_attention _pad_circular _pad_enum
_safe_softmax _scaled_dot_product_attention_math _softmax
_transformer_encoder_layer_fwd _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm

binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy_loss hinge_embedding_loss huber_loss
kl_div l1_loss margin_ranking_loss mse_loss nll_loss nll_loss_forward nll_loss_nd poisson_nll_loss smooth_l1_loss
soft_margin_loss triplet_margin_loss

cholesky cholesky_inverse cholesky_solve det inverse linalg_cholesky linalg_cond linalg_cross linalg_det linalg_diagonal
linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh linalg_inv linalg_lu linalg_lu_factor linalg_matmul linalg_matrix_exp
linalg_matrix_norm linalg_matrix_power linalg_matrix_rank linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet
linalg_solve linalg_solve_triangular linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander linalg_vecdot
linalg_vector_norm logdet matrix_exp matrix_power pinverse qr slogdet svd triangular_solve _linalg_det _linalg_eigh
_linalg_slogdet _linalg_svd

fft_fft fft_fft2 fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_irfft fft_irfft2
fft_irfftn fft_rfft fft_rfft2 fft_rfftn istft stft _fft_c2c _fft_c2r _fft_r2c
"""
_ALLOWED: Final = frozenset(_NAMES.split())
_VIEWS: Final = frozenset({"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "lift"})
_COMPUTED: Final = """
linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d _convolution _convolution_mode bilinear matmul
linalg_matmul batch_norm instance_norm layer_norm group_norm rms_norm softmax log_softmax lstm gru rnn_relu rnn_tanh lstm_cell gru_cell
rnn_relu_cell rnn_tanh_cell scaled_dot_product_attention embedding_bag max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d upsample_linear1d upsample_nearest1d upsample_bicubic2d upsample_trilinear3d
concat concatenate hstack vstack dstack row_stack column_stack outer kron one_hot cdist cosine_similarity pairwise_distance where
absolute arccos arccosh arcsin arcsinh arctan arctan2 arctanh divide true_divide multiply subtract negative square selu relu6 prelu
log_sigmoid float_power greater greater_equal less less_equal not_equal std var std_mean var_mean nanmean quantile nanquantile diff
isclose isfinite isreal fix
"""
_COMPUTES: Final = frozenset(_COMPUTED.split())
"""Operators that are made of others, and answer with a new tensor all the same."""
_NORMS: Final = frozenset({"aten::batch_norm", "aten::instance_norm"})
_ZEROED: Final = {
    torch.ops.aten.empty.memory_format: torch.ops.aten.zeros.default,
    torch.ops.aten.empty_like.default: torch.ops.aten.zeros_like.default,
    torch.ops.aten.new_empty.default: torch.ops.aten.new_zeros.default,
}
_ZEROED_NAMES: Final = frozenset(map(str, _ZEROED))


def is_allowed(name: str) -> bool:
    """Whether a program may name this operator of ATen, `name.overload`; a variant that writes into a tensor that it is given may not."""
    base, _, overload = name.partition(".")
    if overload == "out" or overload.endswith("_out"):
        return False
    return base in _ALLOWED or base.removesuffix("_") in _ALLOWED or f"aten.{name}" in _ZEROED_NAMES


def zero_new_memory(graph: torch.fx.Graph) -> None:
    """Have a graph make tensors of zeros where it takes memory as the allocator gives it, and fills it later or never."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _ZEROED:
            if node.target is torch.ops.aten.empty.memory_format:
                node.kwargs = {name: value for name, value in node.kwargs.items() if name != "memory_format"}
            node.target = _ZEROED[node.target]


def find_retained(graph: torch.fx.Graph) -> str | None:
    """Find an operator that writes into the program's weights or inputs, where a later request would meet it; None if none does.

    A tensor may be written into if the program computed it itself. What may be a view of another is as that one is.
    """
    own: dict[torch.fx.Node, bool] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            own[node] = node.op == "call_function" and (
                node.target is not operator.getitem or all(own[each] for each in node.all_input_nodes)
            )
            continue
        given = _given(node)
        written = [value for argument, value in given if argument.alias_info and argument.alias_info.is_write]
        if not all(own[each] for each in _nodes(written)) or _learns(node.target, given):
            return str(node.target)
        own[node] = all(own[each] for each in _nodes(_viewed(node.target, given)))
    return None


def _given(node: torch.fx.Node) -> list[tuple[Any, Any]]:
    """Pair the arguments in an operator's schema with what a node gives."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]  # noqa: SLF001 - torch has no public way
    pairs = list(zip(arguments, node.args, strict=False))
    return pairs + [(each, node.kwargs[each.name]) for each in arguments if each.name in node.kwargs]


def _nodes(values: list[Any]) -> Iterator[torch.fx.Node]:
    for value in values:
        if isinstance(value, torch.fx.Node):
            yield value
        elif isinstance(value, list | tuple):
            yield from _nodes(list(value))


def _viewed(target: Any, given: list[tuple[Any, Any]]) -> list[Any]:
    """What an operator's answer may share its memory with: what the schema says, and all it is given where another operator answers."""
    schema, name = target._schema, target._schema.name.removeprefix("aten::")  # noqa: SLF001 - as above
    if not any("Tensor" in str(each.type) for each in schema.returns):
        return []
    marked = [value for argument, value in given if argument.alias_info is not None]
    composite = target.has_kernel_for_dispatch_key("CompositeImplicitAutograd")
    if marked or not (composite or name in _VIEWS) or name in _COMPUTES:
        return marked
    return [value for _, value in given]


def _learns(target: Any, given: list[tuple[Any, Any]]) -> bool:
    """Whether a layer adds the rows that it is given to its running mean."""
    values = {argument.name: value for argument, value in given}
    learns = values.get("training", values.get("use_input_stats", False))
    return target._schema.name in _NORMS and learns is not False and values.get("running_mean") is not None  # noqa: SLF001
