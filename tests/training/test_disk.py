"""What a disk does to a run: full, read-only, bits that flip. The last good checkpoint stays."""

from __future__ import annotations

import hashlib
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_run, same_state, tiny, trainer

from evit_models.training import ConfigError, TrainingError
from evit_models.training.checkpointing import (
    checkpoints,
    load_state,
    save_state,
    why_bad,
)
from evit_models.training.logging import RunLog, read_log

NOBODY = 65534


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tests/conftest.py restores the number


@pytest.fixture
def no_root() -> Iterator[Path]:
    """A folder of a user whom permissions bind: root may write everywhere."""
    with tempfile.TemporaryDirectory() as name:
        root = os.geteuid() == 0
        if root:
            os.chown(name, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)
            for folder in [Path(name), *Path(name).rglob("*")]:
                if folder.is_dir():
                    folder.chmod(0o755)


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((1000,), float(step)), "names": ["a", None, 0.5]}


def test_state_is_read_back_and_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_state(tmp_path, step, state(step))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003.pt", "step-00000002.pt"]
    found = load_state(tmp_path, pytest.fail)
    assert found is not None
    assert same_state(found[1], state(3))
    sums = (tmp_path / "step-00000003.pt.sha256").read_text().strip()
    assert sums == hashlib.sha256(found[0].read_bytes()).hexdigest()
    assert len(list(tmp_path.iterdir())) == 4


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    (tmp_path / ".step-00000002.pt.123.tmp").write_bytes(b"half")
    (tmp_path / "step-00000001.pt.sha256").write_text("a sum whose file never came")
    save_state(tmp_path, 3, state(3))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("harm", ["flip", "cut", "no sum", "empty"])
def test_a_bad_checkpoint_is_skipped_aloud(harm: str, tmp_path: Path) -> None:
    save_state(tmp_path, 1, state(1))
    path = save_state(tmp_path, 2, state(2))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    if harm == "no sum":
        path.with_name(path.name + ".sha256").unlink()
    else:
        path.write_bytes({"flip": bytes(content), "cut": content[:-9], "empty": b""}[harm])
    said: list[str] = []
    found = load_state(tmp_path, said.append)
    assert found is not None
    assert found[1]["step"] == 1
    (warning,) = said
    assert "step-00000002.pt" in warning
    assert ("no checksum" if harm == "no sum" else "SHA-256 does not match") in warning
    # Made anew, the step replaces what is bad.
    save_state(tmp_path, 2, state(2))
    assert why_bad(path) is None


def test_no_good_checkpoint_is_for_the_user_to_decide(tmp_path: Path) -> None:
    assert load_state(tmp_path / "none", pytest.fail) is None
    save_state(tmp_path, 1, state(1)).write_bytes(b"?")
    with pytest.raises(TrainingError, match=r"no checkpoint is usable: step-00000001\.pt is"):
        load_state(tmp_path, lambda text: None)


def test_a_run_goes_on_from_the_checkpoint_before(tmp_path: Path) -> None:
    config = tiny(checkpoint_steps=1)
    trainer(tmp_path / "whole", config).run()

    def stop(kind: str, facts: dict[str, Any]) -> None:
        if kind == "step" and facts["step"] == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "hurt", config, observe=stop).run()
    newest = checkpoints(tmp_path / "hurt" / "checkpoints")[0]
    content = bytearray(newest.read_bytes())
    content[1000] ^= 1
    newest.write_bytes(content)
    said: list[str] = []
    trainer(
        tmp_path / "hurt",
        config,
        observe=lambda kind, facts: said.append(kind + str(facts)),
    ).run()
    assert said[0].startswith("warning")
    assert "step-00000007.pt is corrupt" in said[0]
    assert said[1].startswith("resume{'step': 6")
    assert_same_run(tmp_path / "hurt", tmp_path / "whole")


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: both end a write with an error of the system."""
    config = tiny(checkpoint_steps=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(kind: str, facts: dict[str, Any]) -> None:
        if kind == "step" and facts["step"] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))

    try:
        with pytest.raises(TrainingError, match=r"cannot save .*step-00000004\.pt: ") as error:
            trainer(tmp_path, config, observe=fill).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "last good checkpoint is" in str(error.value)
    names = [path.name for path in checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000003.pt", "step-00000002.pt"]
    assert all(why_bad(path) is None for path in checkpoints(tmp_path / "checkpoints"))
    assert not list((tmp_path / "checkpoints").glob(".*")), "the half file is gone"


def test_a_folder_that_becomes_read_only(no_root: Path) -> None:
    config = tiny(checkpoint_steps=1)

    def lock(kind: str, facts: dict[str, Any]) -> None:
        if kind == "step" and facts["step"] == 3:
            (no_root / "run" / "checkpoints").chmod(0o555)

    with pytest.raises(TrainingError, match="Permission denied; the last good checkpoint is"):
        trainer(no_root / "run", config, observe=lock).run()
    newest = checkpoints(no_root / "run" / "checkpoints")[0]
    assert newest.name == "step-00000002.pt"
    assert why_bad(newest) is None


def test_a_read_only_folder_is_refused_before_the_first_step(no_root: Path) -> None:
    no_root.chmod(0o555)
    with pytest.raises(ConfigError, match=r"output: .*: Permission denied"):
        trainer(no_root / "run", tiny())


def test_a_log_with_a_torn_line_goes_on(tmp_path: Path) -> None:
    RunLog(tmp_path).write("step", step=1, loss=2.0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    log = RunLog(tmp_path)
    log.write("step", step=2, loss=1.0)
    log.write("step", step=2, loss=0.5)
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path)] == [(1, 2.0), (2, 0.5)]
