"""Operators of PyTorch that a file may not name unless somebody vouches for it. Imports no torch.

Operators with a leading underscore and backward formulas are internals: their callers have checked sizes
and indices, they themselves read and write where they are told. Of these only the ones that real traces and
exports hold are let through.
"""

from __future__ import annotations

import re
from typing import Final

_INTERNALS: Final = re.compile(
    r"_adaptive_avg_pool2d|_adaptive_avg_pool3d|_add_relu|_addmm_activation|_assert_async|_assert_scalar|"
    r"_assert_tensor_metadata|_batch_norm_impl_index|_cast_Byte|_cast_Char|_cast_Double|_cast_Float|"
    r"_cast_Half|_cast_Int|_cast_Long|_cast_Short|_cdist_forward|_chunk_cat|_coalesce|_conj|"
    r"_conj_copy|_conj_physical|_convolution|_convolution_mode|_copy_from|_dimI|_dimV|_dim_arange|"
    r"_embedding_bag|_embedding_bag_forward_only|_enum_name|_euclidean_dist|_fft_c2c|_fft_c2r|_fft_r2c|"
    r"_functional_assert_async|_functional_assert_scalar|_functional_sym_constrain_range|"
    r"_functional_sym_constrain_range_for_size|_fused_dropout|_fused_rms_norm|_fw_primal|"
    r"_get_tracing_state|_grad_sum_to_size|_grouped_mm|_histogramdd_bin_edges|_histogramdd_from_bin_cts|"
    r"_histogramdd_from_bin_tensors|_infer_size|_int_mm|_is_all_true|_is_any_true|_is_zerotensor|"
    r"_lazy_clone|_linalg_check_errors|_linalg_det|_linalg_eigh|_linalg_eigvals|_linalg_slogdet|"
    r"_linalg_solve_ex|_linalg_svd|_list_to_tensor|_local_scalar_dense|_log_softmax|_logcumsumexp|"
    r"_lu_with_info|_make_dual|_make_per_channel_quantized_tensor|_make_per_tensor_quantized_tensor|"
    r"_masked_scale|_masked_softmax|_native_batch_norm_legit|_native_batch_norm_legit_functional|"
    r"_native_batch_norm_legit_no_training|_native_multi_head_attention|_neg_view|_neg_view_copy|"
    r"_nested_tensor_from_mask|_nested_tensor_from_mask_left_aligned|_no_grad_embedding_renorm_|"
    r"_no_grad_fill_|_no_grad_normal_|_no_grad_uniform_|_no_grad_zero_|_pack_padded_sequence|"
    r"_pack_sequence|_pad_circular|_pad_enum|_pad_packed_sequence|_pdist_forward|_prelu_kernel|_print|"
    r"_remove_batch_dim|_reshape_copy|_reshape_from_tensor|_safe_softmax|_sample_dirichlet|"
    r"_scaled_dot_product_attention|_scaled_dot_product_attention_math|"
    r"_scaled_dot_product_efficient_attention|_scaled_dot_product_flash_attention|"
    r"_scaled_dot_product_flash_attention_for_cpu|_scaled_mm|_set_item|_shape_as_tensor|"
    r"_size_if_not_equal|_softmax|_sparse_softmax|_stack|_standard_gamma|_tensor_to_list|_to_copy|"
    r"_to_cpu|_to_dense|_transform_bias_rescale_qkv|_transformer_encoder_layer_fwd|_triangular_solve|"
    r"_trilinear|_unique|_unique2|_unsafe_index|_unsafe_index_put|_unsafe_masked_index|"
    r"_unsafe_masked_index_put_accumulate|_unsafe_view|_unwrap_optional|_upsample_bicubic2d_aa|"
    r"_upsample_bilinear2d_aa|_upsample_lanczos2d_aa|_upsample_nearest_exact1d|_upsample_nearest_exact2d|"
    r"_upsample_nearest_exact3d|_weight_norm|_weight_norm_interface"
    r"|_foreach_\w+"
)

# Backward formulas write where an index tensor says; the rest compute with sizes they do not check, or go
# around PyTorch (files, storages, oneDNN's and FBGEMM's packed layouts).
_REFUSED: Final = re.compile(
    r".*_backward.*|from_file|save|load|set_data|mkldnn_.*|fbgemm_.*|slow_conv.*|thnn_conv.*|conv_depthwise3d"
    r"|segment_reduce.*|sparse_resize.*|quantized_(lstm|gru|rnn).*|.*_unsafe|resize_as_sparse_|cudnn_.*|miopen_.*"
)


def forbidden(name: str) -> bool:
    """Whether the ``aten`` operator of this name (without overload) is kept from files of strangers."""
    if not name.startswith("_") or name.startswith("__"):
        return _REFUSED.fullmatch(name) is not None
    return not any(_INTERNALS.fullmatch(form) for form in (name, name.removesuffix("_")))
