"""Whole networks side by side: ours, a plain PyTorch network, and exports of the latter."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from plain import LiteMLA, PlainEfficientViT3D, load
from rounds import CHANNELS_LAST, COMPILED, LAYOUTS, OURS, PYTORCH, Peer, inference
from shapes import CLIP, MODEL
from torch import Tensor, nn

from evit_models import create_model
from evit_models.efficientvit3d import VARIANTS

CLASSES = 400
OPENVINO, ONNXRUNTIME = "OpenVINO", "ONNX Runtime"


def plain_network(model: str = MODEL) -> PlainEfficientViT3D:
    """A plain network of the B series, in evaluation mode; its weights make every layer count.

    Fresh norms have never seen data and fresh residual branches are multiplied by 0, so that nobody
    would notice what the blocks compute. Here norms have weights around 1, and the statistics of a
    clip of noise. They are the same whichever benchmarks are selected: in float32 the error of
    gradients depends on the numbers, for PyTorch as for us.
    """
    torch.manual_seed(0)
    row = VARIANTS[model]
    strides = tuple(create_model(model, temporal_strides="tubelet").temporal_strides)
    network = PlainEfficientViT3D(
        row.widths, row.depths, row.head_dim, row.head_widths, CLASSES, strides
    )
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.momentum = 1.0
        network.train()(torch.randn(2, 3, 4, 96, 96))
        for norm in norms:
            norm.momentum = 0.1
    return network.eval()


def peer_network(peer: str, plain: PlainEfficientViT3D, model: str = MODEL) -> nn.Module:
    """A copy of the plain network in the peer's memory format, or ours with its weights."""
    if peer == OURS:
        ours = create_model(model, CLASSES, backend="native").train(plain.training)
        load(ours, plain.state_dict())
        return ours
    network: nn.Module = copy.deepcopy(plain)
    network.to(memory_format=layout_of(peer))  # type: ignore[call-overload]
    return network


def layout_of(peer: str) -> torch.memory_format:
    """The memory format in which a peer gets its clip."""
    if peer in (OPENVINO, ONNXRUNTIME):
        return torch.contiguous_format
    return LAYOUTS[CHANNELS_LAST] if peer in (OURS, COMPILED) else LAYOUTS[peer]


def forward_calls(plain: PlainEfficientViT3D, clip: Tensor) -> dict[str, Peer]:
    """Per peer a function that gives the logits of the clip, or the reason why there is none."""
    calls: dict[str, Peer] = {}
    for peer in (OURS, *PYTORCH):
        calls[peer] = inference(peer_network(peer, plain), _laid_out(clip, peer))
    compiled = torch.compile(peer_network(COMPILED, plain))
    calls[COMPILED] = inference(compiled, _laid_out(clip, COMPILED))
    missing = [name for name in ("onnx", "onnxscript") if not _installed(name)]
    for peer, module, build in (
        (OPENVINO, "openvino", _openvino),
        (ONNXRUNTIME, "onnxruntime", _onnxruntime),
    ):
        lacking = [*missing, *([] if _installed(module) else [module])]
        calls[peer] = (
            f"not installed: {', '.join(lacking)} (the extra [bench] has them)"
            if lacking
            else build(_exported(plain, clip), clip)
        )
    return calls


def training_call(network: nn.Module, clip: Tensor) -> Callable[[], list[Tensor]]:
    """A training step without an optimiser: forward, cross-entropy, gradients of all parameters."""
    network.train()
    parameters = list(network.parameters())
    labels = torch.arange(clip.shape[0]) % CLASSES

    def call() -> list[Tensor]:
        loss = nn.functional.cross_entropy(network(clip), labels)
        return list(torch.autograd.grad(loss, parameters))

    return call


def _laid_out(clip: Tensor, peer: str) -> Tensor:
    return clip.contiguous(memory_format=layout_of(peer))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _exported(plain: nn.Module, clip: Tensor) -> bytes:
    """The plain network as a file of ONNX."""
    exported = copy.deepcopy(plain)
    for module in exported.modules():
        if isinstance(module, LiteMLA):
            # OpenVINO takes smaller constants for 0, leaves them out, and then divides 0 by 0.
            module.eps = 1e-6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        program = torch.onnx.export(exported, (clip,), dynamo=True, verbose=False)
        assert program is not None
        program.save(path, external_data=False)
        return path.read_bytes()


def _openvino(model: bytes, clip: Tensor) -> Callable[[], Tensor]:
    import openvino

    compiled = openvino.compile_model(
        openvino.Core().read_model(model),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # The default is bfloat16 where the processor has it; all peers compute in float32.
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request, array = compiled.create_infer_request(), clip.numpy()

    def call() -> Tensor:
        (logits,) = request.infer([array]).values()
        return torch.from_numpy(logits)

    return call


def _onnxruntime(model: bytes, clip: Tensor) -> Callable[[], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would go on spinning for a while, in the time of the peer that comes next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name, array = session.get_inputs()[0].name, clip.numpy()

    def call() -> Tensor:
        (logits,) = session.run(None, {name: array})
        return torch.from_numpy(logits)

    return call


def random_clip(frames: int = CLIP[2]) -> Tensor:
    """A clip of noise, (1, 3, T, H, W), the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*CLIP[:2], frames, *CLIP[3:], generator=generator)
