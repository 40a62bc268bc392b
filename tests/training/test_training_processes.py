"""Training on two processes, with whole and with sharded models, equals training on one."""
# ruff: noqa: F401, F811 (fixtures are imported)

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from cdgen import TrainConfig, train
from tests.helpers.small_runs import command, data, log_of, settings

# accelerate uses FSDP only on GPUs. If it is set explicitly, it works on CPUs too.
SHARDED = """
import sys
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from cdgen.cli import main
from cdgen.training import trainer

class Sharding(Accelerator):
    def __init__(self, **options):
        wrapped = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": ["LlamaDecoderLayer"]}
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **wrapped)
        super().__init__(**options)
        self.state.distributed_type, self.state.fsdp_plugin = DistributedType.FSDP, plugin

    def prepare(self, *args):
        prepared = super().prepare(*args)
        assert all(isinstance(x, DTensor) for x in prepared[0].parameters())
        return prepared

trainer.Accelerator = Sharding
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
@pytest.mark.slow
def test_two_processes_train_like_one(sharded, settings, tmp_path, data) -> None:
    """20 steps with gloo, two micro-batches per step, 5 test blocks. Then one process resumes the run of two."""
    given = settings(tmp_path / "one", steps=20, save_every=10, micro_batch_size=2, eval_blocks=5)
    train(TrainConfig(**given))
    given["out"] = str(tmp_path / "two")
    (tmp_path / "sharded.py").write_text(SHARDED)
    program = [str(tmp_path / "sharded.py")] if sharded else ["-m", "cdgen"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *program]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if not torch.accelerator.is_available():
        del environment["ACCELERATE_USE_CPU"]
    argv = list(map(str, command(given)))
    done = subprocess.run([*launch, *argv], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained to step 20") == 1, "only the first process prints"

    def assert_equal_runs() -> None:
        one, two = (log_of(tmp_path / name) for name in ("one", "two"))
        for kind in ("loss", "gradient_norm", "test_loss"):
            found, due = ([record[kind] for record in log if kind in record] for log in (two, one))
            assert found == pytest.approx(due, rel=1e-5), kind
        weights = [load_file(tmp_path / name / "step_000020" / "model.safetensors") for name in ("one", "two")]
        assert weights[0].keys() == weights[1].keys()
        for name, weight in weights[0].items():
            assert (weights[1][name] - weight).norm() <= 1e-4 * weight.norm(), name

    assert_equal_runs()
    shutil.rmtree(tmp_path / "two" / "step_000020")
    train(TrainConfig(**given))
    assert_equal_runs()
