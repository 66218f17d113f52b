"""Every subcommand where all is well."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
import torch
from click.testing import CliRunner
from conftest import TINY, Call

from evit_kernels import backends
from evit_models import create_model, list_models, load_model
from evit_models.checkpoints.keys import from_ours
from evit_models.cli import evit as group
from evit_models.cli.common import UserError, check_backend
from evit_models.cli.peers import model_peers, operator_peers
from evit_models.video import ClipTransform, VideoReader, view_indices

B0 = ("--model", "efficientvit3d_b0")


def test_help_names_every_subcommand(evit: Call) -> None:
    result = evit()
    assert result.code == 0
    for command in ("info", "models", "classify", "bench", "demo"):
        assert f"\n  {command} " in result.out
        page = CliRunner().invoke(group, [command, "--help"])
        assert page.exit_code == 0
        assert "--debug" in page.output


def test_info_tells_versions_and_kernels(evit: Call) -> None:
    result = evit("info")
    assert result.code == 0
    assert torch.__version__ in result.out
    assert "depthwise_conv3d" in result.out
    facts = json.loads(evit("info", "--json").out)
    assert facts["versions"]["torch"] == torch.__version__
    rows = {(row["operator"], row["backend"]): row for row in facts["kernels"]}
    assert rows["depthwise_conv3d", "reference"]["available"]
    assert all(row["available"] != bool(row["reason"]) for row in rows.values())


def test_models_lists_all_of_them(evit: Call) -> None:
    result = evit("models")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()[1:9]] == list_models()
    facts = json.loads(evit("models", "b1", "--json", "--temporal-strides", "full").out)
    (row,) = facts["models"]
    assert row["name"] == "efficientvit3d_b1"
    assert row["parameters"] == sum(
        p.numel() for p in create_model("efficientvit3d_b1").parameters()
    )
    assert row["temporal_strides"] == [1, 1, 1, 1, 1]


def test_classify_says_first_that_weights_are_random(evit: Call, video: Path) -> None:
    result = evit("classify", video, *B0, *TINY)
    assert result.code == 0
    first, second, *rest = result.out.splitlines()
    assert "weights are random" in first
    assert "h264 96 x 72" in second
    assert "2.00 s at 25.00 frames/s, without sound" in second
    assert len(rest) == 1 + 1 + 5
    assert result.err == ""


def test_classify_computes_what_the_library_computes(
    evit: Call, video: Path, checkpoint: Path
) -> None:
    arguments = ("--stride", 3, "--views", 2, "--crops", 3, "--topk", 7, "--backend", "reference")
    result = evit("classify", video, "--checkpoint", checkpoint, *TINY, *arguments, "--json")
    assert result.code == 0
    facts = json.loads(result.out)
    assert facts["model"] == "efficientvit3d_b0"
    assert facts["weights"] == str(checkpoint)
    assert facts["note"] is None

    model = load_model(checkpoint, backend="reference").eval()
    scores = []
    with VideoReader(video) as reader, torch.inference_mode():
        for indices in view_indices(50, 4, 2, 3):
            frames = list(reader.frames_by_index(indices))
            scores.append(model(ClipTransform(size=64, crops=3)(frames)).softmax(-1))
    expected = torch.cat(scores).mean(0)
    found = {row["class"]: row["probability"] for row in facts["predictions"]}
    assert sorted(found.values(), reverse=True) == list(found.values())
    assert [found[index] for index in range(7)] == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize(
    "text",
    ["a\nb\nc\nd\ne\nf\ng\n", '["a","b","c","d","e","f","g"]',
     '{"0":"a","1":"b","2":"c","3":"d","4":"e","5":"f","6":"g"}'],
)  # fmt: skip
def test_classify_names_the_classes(
    text: str, evit: Call, video: Path, checkpoint: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    labels.write_text(text)
    result = evit(
        "classify", video, "--checkpoint", checkpoint, "--labels", labels, *TINY, "--json"
    )
    assert result.code == 0
    predictions = json.loads(result.out)["predictions"]
    assert len(predictions) == 5
    assert all(row["label"] == "abcdefg"[row["class"]] for row in predictions)


def test_labels_decide_how_many_classes_random_weights_have(
    evit: Call, video: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("walking the dog\nrunning\n\n")
    result = evit("classify", video, *B0, "--labels", labels, *TINY)
    assert result.code == 0
    assert "walking the dog" in result.out


def test_a_checkpoint_of_another_project_tells_its_variant_and_classes(
    evit: Call, video: Path, checkpoint: Path, tmp_path: Path
) -> None:
    state = load_model(checkpoint).state_dict()
    theirs = {from_ours(name, "original", "B"): value for name, value in state.items()}
    path = tmp_path / "original.pt"
    torch.save({"state_dict": theirs}, path)
    result = evit("classify", video, "--checkpoint", path, *TINY, "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["model"] == "efficientvit3d_b0"
    assert facts["note"] is None
    assert max(row["class"] for row in facts["predictions"]) < 7


def test_a_checkpoint_without_a_head_says_so_first(
    evit: Call, video: Path, checkpoint: Path, tmp_path: Path
) -> None:
    state = load_model(checkpoint).state_dict()
    path = tmp_path / "backbone.pt"
    torch.save({name: v for name, v in state.items() if not name.startswith("head.")}, path)
    result = evit("classify", video, "--checkpoint", path, *TINY)
    assert result.code == 0
    assert "tensors of the head are not in" in result.out.splitlines()[0]


def test_long_work_reports_in_plain_lines_where_there_is_no_terminal(
    evit: Call, video: Path
) -> None:
    result = evit("classify", video, *B0, *TINY, "--views", 3)
    assert result.err.splitlines() == ["view 1/3", "view 2/3", "view 3/3"]


def test_a_truncated_video_is_classified_with_a_warning(
    evit: Call, video: Path, tmp_path: Path
) -> None:
    fast = tmp_path / "fast.mp4"
    with (
        av.open(str(video)) as source,
        av.open(str(fast), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = fast.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2])
    result = evit("classify", cut, *B0, *TINY)
    assert result.code == 0
    assert "evit: warning:" in result.err
    assert "ends after" in result.err


OPERATORS = {
    "depthwise_conv3d": (),
    "relu_linear_attention_qkv": ("--head-dim", 8),
    "pointwise_conv3d": (),
    "pointwise_depthwise_conv3d": (),
    "batch_norm_activation": (),
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("op", OPERATORS)
def test_bench_of_an_operator(op: str, backward: bool, evit: Call) -> None:
    small = ("--channels", 24, "--frames", 2, "--size", 8, "--rounds", 3, *OPERATORS[op])
    result = evit("bench", "--op", op, *small, "--json", *(["--backward"] if backward else []))
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    names = [row["name"] for row in facts["peers"]]
    assert names == ["ours (channels_last_3d)", "PyTorch NCDHW", "PyTorch channels_last_3d"]
    assert facts["peers"][0]["times_ours"] == 1
    assert all(len(row["rounds_ms"]) == 3 for row in facts["peers"])
    assert all(row["median_ms"] > 0 for row in facts["peers"])


def test_bench_of_a_model_prints_a_table_and_writes_a_file(evit: Call, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    result = evit("bench", *B0, *TINY, "--rounds", 2, "--json", path)
    assert result.code == 0, result.err
    assert "median of 2 paired rounds" in result.out
    assert "PyTorch NCDHW" in result.out
    assert json.loads(path.read_text())["what"] == "efficientvit3d_b0"


def test_bench_under_the_compiler_in_either_layout_with_a_trace(evit: Call, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    small = ("--channels", 24, "--frames", 2, "--size", 8, "--rounds", 1, "--profile", path)
    result = evit("bench", "--op", "depthwise_conv3d", *small, "--layout", "ncdhw", "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["mode"] == "eager"
    assert facts["peers"][0]["name"] == "ours (NCDHW)"
    # A CPU launches nothing, and its allocator does not tell of a peak.
    assert facts["launches"] is None
    assert facts["peers"][0]["peak_bytes"] is None
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert "evit::depthwise_conv3d" in names
    result = evit("bench", "--op", "batch_norm_activation", *small[:-2], "--mode", "compile")
    assert result.code == 0, result.err
    assert "batch_norm_activation, compile, forward" in result.out


def test_bench_of_a_model_prefers_a_backend_where_it_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peers = model_peers(
        "efficientvit3d_b0",
        (1, 3, 2, 32, 32),
        torch.float32,
        torch.device("cpu"),
        "native",
        backward=False,
    )
    ours, *others = (call() for call in peers.values())
    for other in others:
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-4)

    def availability(device: object) -> list[backends.Availability]:
        return [
            backends.Availability(name, "native", "cuda", name == "depthwise_conv3d", "not yet")
            for name in ("depthwise_conv3d", "pointwise_conv3d")
        ]

    monkeypatch.setattr(backends, "availability", availability)
    device = torch.device("cpu")
    assert check_backend("native", device, ["depthwise_conv3d", "pointwise_conv3d"]) == "native"
    for operators in (None, ["pointwise_conv3d"]):
        with pytest.raises(UserError, match="native is not available: not yet"):
            check_backend("native", device, operators)


@pytest.mark.parametrize("op", OPERATORS)
def test_the_peers_of_an_operator_compute_the_same(op: str) -> None:
    for backward in (False, True):
        peers = operator_peers(
            op,
            (2, 24, 3, 6, 5),
            torch.float32,
            torch.device("cpu"),
            None,
            kernel=3,
            head_dim=8,
            backward=backward,
        )
        ours, *theirs = (call() for call in peers.values())
        for other in theirs:
            if not backward:
                torch.testing.assert_close(ours, other, rtol=2e-4, atol=2e-5)


def test_the_peers_of_a_model_compute_the_same_in_their_own_layout() -> None:
    peers = model_peers(
        "efficientvit3d_b0",
        (1, 3, 4, 64, 64),
        torch.float32,
        torch.device("cpu"),
        None,
        backward=False,
    )
    ours, *theirs = (call() for call in peers.values())
    for other in theirs:
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-4)
