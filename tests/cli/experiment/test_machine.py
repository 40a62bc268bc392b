"""The name of the machine in the record of a stage."""

import os
import sys

import pytest
import torch

from cdgen.cli.experiment.machine import machine


def test_a_gpu_is_named_if_the_command_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names = {None: "NVIDIA H100", "cuda:1": "NVIDIA L4"}
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert machine(["train", "--out", "o"]) == machine(["evaluate", "m"]) == "NVIDIA H100"
    assert machine(["generate", "--device", "cuda:1"]) == "NVIDIA L4"
    for argv in (["prepare", "text.txt"], ["generate", "--device", "cpu"]):
        assert machine(argv).endswith(", 1 thread") and "H100" not in machine(argv)


def test_torch_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine(["tokenizer", "corpus"]).endswith(", 3 threads")
    assert "torch" not in sys.modules
