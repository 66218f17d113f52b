"""Fused kernels for video networks: depthwise 3-D convolution, linear attention, neighbours."""

from evit_kernels.accelerate import AccelerationReport, accelerate
from evit_kernels.backends import available_backends
from evit_kernels.batch_norm_activation import batch_norm_activation
from evit_kernels.dense_conv3d import dense_conv3d
from evit_kernels.depthwise_conv3d import depthwise_conv3d
from evit_kernels.pointwise_conv3d import pointwise_conv3d
from evit_kernels.pointwise_depthwise_conv3d import pointwise_depthwise_conv3d
from evit_kernels.relu_linear_attention import relu_linear_attention, relu_linear_attention_qkv

__all__ = [
    "AccelerationReport",
    "accelerate",
    "available_backends",
    "batch_norm_activation",
    "dense_conv3d",
    "depthwise_conv3d",
    "pointwise_conv3d",
    "pointwise_depthwise_conv3d",
    "relu_linear_attention",
    "relu_linear_attention_qkv",
]
