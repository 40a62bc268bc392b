"""What the first process writes and shows: the log, the checkpoints, run.json and the progress."""

import math
from dataclasses import asdict

from transformers import PreTrainedTokenizerBase

from cdgen.models.quiet import quiet_transformers
from cdgen.storage import runs
from cdgen.storage.folder import OutputFolder
from cdgen.storage.progress import Progress
from cdgen.training import checkpoints
from cdgen.training.config import TrainConfig
from cdgen.training.logs import Log
from cdgen.training.state import TrainingState
from cdgen.training.step import StepMetrics


class Recorder:
    """Writes a run's folder and reports progress.

    Args:
        folder: the run's folder, entered.
        run: the content of run.json. It is written at once, and changed by every checkpoint.
        step: the step that training resumes from.
    Raises:
        InputError: TensorBoard is requested but not installed.
        CorpusError: the folder cannot be written, or its log is damaged.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: OutputFolder,
        run: runs.Run,
        tokenizer: PreTrainedTokenizerBase,
        progress: Progress,
        step: int,
    ) -> None:
        self.config, self.folder, self.run, self.tokenizer, self.progress = config, folder, run, tokenizer, progress
        progress.begin(config.steps, step, unit="steps", verb="to train")
        self.log = Log(folder, step, config.tensorboard)
        runs.write(folder, run)

    def record_step(self, step: int, metrics: StepMetrics) -> None:
        """Log the metrics of a step and show the progress.

        Raises:
            CorpusError: the log cannot be written.
        """
        share = f", {metrics.mfu:.0%} of the peak" if metrics.mfu else ""
        self.progress.about(f"loss {metrics.loss:.3f}{share}")
        self.progress.tokens(self.config.batch_size * self.config.block_size)
        self.progress.advance(1)
        self.log.write(step, **asdict(metrics))

    def save(self, state: TrainingState, snapshot: checkpoints.Snapshot, loss: float, test_loss: float | None) -> None:
        """Write a checkpoint. It replaces one that was written because of an interruption.

        Args:
            state: the state to save, after its last step.
            snapshot: the tensors to write.
            loss: training loss of the last step.
            test_loss: loss on the test text, if it was evaluated.
        Raises:
            CorpusError: the checkpoint cannot be written.
        """
        perplexity = None if test_loss is None else math.exp(test_loss)
        if perplexity is not None:
            self.log.write(state.step, test_loss=test_loss, perplexity=perplexity)
        before = self.run["checkpoints"][-1:]
        entry = runs.Checkpoint(step=state.step, loss=loss, perplexity=perplexity, files={})
        with quiet_transformers():
            checkpoints.save(self.folder, self.run, entry, state.lm, self.tokenizer, snapshot, self.config.keep_states)
        for old in before:
            if old["step"] % self.config.save_every:  # it was written because of an interruption
                runs.drop_checkpoint(self.folder, self.run, old)
        rated = "" if perplexity is None else f", perplexity {perplexity:.3f}"
        self.progress.note(f"{runs.checkpoint_name(state.step)}: loss {loss:.4f}{rated}")

    def close(self) -> None:
        """Close the log."""
        self.log.close()
