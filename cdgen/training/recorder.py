"""What the first process writes and shows: the log, the checkpoints, run.json and the progress."""

import math
from dataclasses import asdict

from transformers import PreTrainedTokenizerBase

from cdgen.errors import InputError
from cdgen.models.quiet import quiet_transformers
from cdgen.storage import runs
from cdgen.storage.folder import OutputFolder
from cdgen.storage.progress import Progress
from cdgen.training import checkpoints
from cdgen.training.config import TrainConfig
from cdgen.training.logs import Log
from cdgen.training.state import TrainingState
from cdgen.training.step import REMEDY, StepMetrics


class Recorder:
    """Writes a run's folder and reports progress.

    Args:
        folder: the run's folder, entered.
        run: the content of run.json. It is written at once, and changed by every checkpoint.
        step: the step that training resumes from.
    Raises:
        CorpusError: the folder cannot be written.
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
        self._tokens = config.batch_size * config.block_size
        self._loss = ""
        self._counted = 0  # tokens of the current step that the progress has received
        progress.begin(config.steps, step, unit="steps", verb="to train", tokens_per_unit=self._tokens)
        runs.write(folder, run)  # before the log, which belongs to the run that it describes
        self.log = Log(folder, step, config.tensorboard)

    def show_micro_batch(self, finished: int, total: int) -> None:
        """Show that `finished` of `total` micro-batches of a step are computed."""
        counted = self._tokens * finished // total
        if finished < total:  # record_step shows the end of the step
            self._show(f"micro-batch {finished} of {total}")
        self.progress.tokens(counted - self._counted)
        self._counted = counted % self._tokens

    def show_evaluation(self, finished: int, total: int) -> None:
        """Show that `finished` of `total` blocks of the test text are evaluated."""
        self._show(f"evaluating: block {finished} of {total}" if finished < total else "")

    def record_step(self, step: int, metrics: StepMetrics) -> None:
        """Log the metrics of a step and show the progress.

        Raises:
            CorpusError: the log cannot be written.
        """
        share = f", {metrics.mfu:.0%} of the peak" if metrics.mfu else ""
        self._loss = f"loss {metrics.loss:.3f}{share}"
        self._show()
        self.progress.advance(1)
        self.log.write(step, **asdict(metrics))

    def _show(self, activity: str = "") -> None:
        self.progress.about(", ".join(text for text in (activity, self._loss) if text))

    def save(self, state: TrainingState, snapshot: checkpoints.Snapshot, loss: float, test_loss: float | None) -> None:
        """Write a checkpoint. It replaces one that was written because of an interruption.

        Args:
            state: the state to save, after its last step.
            snapshot: the tensors to write.
            loss: training loss of the last step.
            test_loss: loss on the test text, if it was evaluated.
        Raises:
            InputError: the run has diverged: the test loss or a weight is not finite.
            CorpusError: the checkpoint cannot be written.
        """
        self._check_finite(state.step, snapshot, test_loss)
        perplexity = None if test_loss is None else _perplexity(test_loss)
        if test_loss is not None:
            self.log.write(state.step, test_loss=test_loss, perplexity=perplexity)
        before = self.run["checkpoints"][-1:]
        entry = runs.Checkpoint(step=state.step, loss=loss, perplexity=perplexity, files={})
        with quiet_transformers():
            checkpoints.save(self.folder, self.run, entry, state.lm, self.tokenizer, snapshot)
        for old in before:
            if old["step"] % self.config.save_every:  # it was written because of an interruption
                runs.drop_checkpoint(self.folder, self.run, old)
        checkpoints.remove_old_states(self.folder.path, self.run, self.config.keep_states)
        rated = "" if test_loss is None else ", perplexity too large for a number"
        if perplexity is not None:
            rated = f", perplexity {perplexity:.3f}"
        self.progress.note(f"{runs.checkpoint_name(state.step)}: loss {loss:.4f}{rated}")

    def _check_finite(self, step: int, snapshot: checkpoints.Snapshot, test_loss: float | None) -> None:
        """Raise InputError if the run has diverged, so that no checkpoint of it is written."""
        damaged = [name for name, weight in snapshot.weights.items() if not weight.isfinite().all()]
        if damaged:
            raise InputError(f"step {step}: {damaged[0]} has a weight that is not finite; {REMEDY}")
        if test_loss is not None and not math.isfinite(test_loss):
            raise InputError(f"step {step}: the loss on the test text is {test_loss}; {REMEDY}")

    def close(self) -> None:
        """Close the log."""
        self.log.close()


def _perplexity(loss: float) -> float | None:
    """Return exp(loss), or None if it is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return None
