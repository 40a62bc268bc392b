"""Training on a GPU: bfloat16 by default, the same loss curve as on the CPU, and decoding in bfloat16."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from cdgen import ContrastiveLM, SamplingParams, TrainConfig, train
from cdgen.storage import runs
from tests.helpers.small_runs import data, log_of, settings  # noqa: F401, fixtures

STEPS = 40


def test_losses_match_the_cpu(setup, settings, tmp_path, monkeypatch) -> None:  # noqa: F811
    """Losses agree to 2 % in bfloat16. accelerate finds the GPU itself."""
    given = {"steps": STEPS, "save_every": STEPS}
    train(TrainConfig(**settings(tmp_path / "cpu", dtype="float32", **given)))
    if setup.device.type == "cuda":
        monkeypatch.delenv("ACCELERATE_USE_CPU")
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # otherwise accelerate keeps the device of the first run
    train(TrainConfig(**settings(tmp_path / "device", **given)))
    run = runs.read(tmp_path / "device")
    on_gpu = setup.device.type == "cuda"
    assert run["config"]["dtype"] == ("bfloat16" if on_gpu else "float32")
    assert run["environments"][0]["device"] == setup.device.type
    curves = [[r["loss"] for r in log_of(tmp_path / name) if "loss" in r] for name in ("device", "cpu")]
    assert len(curves[0]) == STEPS and curves[0][-1] < curves[0][0] - 0.5
    np.testing.assert_allclose(*curves, rtol=0.02)
    lm = ContrastiveLM(f"{tmp_path / 'device'}@best", layers=1)
    assert lm.pair.good.module.dtype == (torch.bfloat16 if on_gpu else torch.float32)
    (request,) = lm.generate("The quick", SamplingParams(max_tokens=8))
    assert len(request.outputs[0].token_ids) <= 8
