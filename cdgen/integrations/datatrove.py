"""Contrastive generation as a step of a datatrove pipeline: documents in, their continuations out.

    pipeline = [
        JsonlReader("seeds/"),
        ContrastiveGenerate("run@best", bad="run@500", params=SamplingParams(n=8, max_tokens=400)),
        ParquetWriter("corpus/"),
    ]
    SlurmPipelineExecutor(pipeline, tasks=20, time="24:00:00", partition="gpu", gpus_per_task=1).run()

Any executor, number of tasks and restart gives the same texts, since the noise of a continuation is keyed by the
document's id. Reference: https://github.com/huggingface/datatrove
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from cdgen.corpus.records import own_id
from cdgen.corpus.seeds import Seed, SeedText, encode_text
from cdgen.corpus.shard_files import record
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.outputs import CompletionOutput
from cdgen.engine.requests import Prompts
from cdgen.engine.sampling_params import SamplingParams, check_params
from cdgen.errors import InputError
from cdgen.values import INT64_MAX, integer, shown, switch

try:
    from datatrove.data import Document
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise InputError('cdgen.integrations.datatrove: needs datatrove: pip install ".[datatrove]"') from error

if TYPE_CHECKING:
    from datatrove.data import DocumentsPipeline

_BATCHES = 16  # a block of documents fills the batch this often, so that its last, incomplete batches cost little


class ContrastiveGenerate(PipelineStep):
    """Continue every document `params.n` times.

    A document's text is the seed. A continuation is a document whose text is the prompt and what follows it. Its id is
    `ID#0`, `ID#1` and so on. Its metadata are those of its seed and the other columns of a generated corpus:
    `token_ids`, `prompt_length`, `seed_id`, `continuation`, `finish_reason`, and the log-probabilities if
    `params.logprobs` is set. Documents without text are dropped.

    Ids must be unique: equal texts under one id have equal continuations. The models are loaded once per task, when its
    first document arrives. If several GPUs are visible, task r uses GPU r modulo their number.

    Args:
        good: GOOD, as in :class:`~cdgen.ContrastiveLM`.
        params: how continuations are sampled; default: `SamplingParams()`.
        prefix_tokens: keep only the first tokens of each seed; default: all.
        parse_special: read special tokens in the seeds, such as "</s>", instead of taking them as text.
        threads: CPU threads per task; default: as many as there are cores, which is too many for several tasks.
        models: further arguments of :class:`~cdgen.ContrastiveLM`, such as `bad`, `dropout`, `dtype`, `max_num_seqs`.
            Models are given by folder or name.
    Raises:
        InputError: an argument cannot be used.
    """

    name = "Contrastive generation"
    type = "GENERATE"

    def __init__(
        self,
        good: str,
        params: SamplingParams | None = None,
        *,
        prefix_tokens: int | None = None,
        parse_special: bool = False,
        threads: int | None = None,
        **models: Any,
    ) -> None:
        super().__init__()
        self.params = SamplingParams() if params is None else params
        check_params(self.params)
        self.models = {"good": good, **models}
        self.prefix_tokens = None if prefix_tokens is None else integer("prefix_tokens", prefix_tokens, 1, INT64_MAX)
        self.parse_special = switch("parse_special", parse_special)
        self.threads = None if threads is None else integer("threads", threads, 1, 1024)

    def run(self, data: "DocumentsPipeline", rank: int = 0, world_size: int = 1) -> "DocumentsPipeline":
        """Yield the continuations of documents, in their order.

        Args:
            data: the documents; only a block of them is in memory.
            rank: number of the task.
            world_size: number of tasks.
        Raises:
            InputError: a document cannot be continued, or the models cannot be loaded; the message names it.
        """
        documents = self._with_text(data)
        first = next(documents, None)
        if first is None:
            return
        choose_device(rank, self.models.get("device"), self.threads)
        with contextlib.closing(ContrastiveLM(**self.models)) as lm:
            if lm.tokenizer is None:
                raise InputError(
                    "tokenizer: none was found, but documents are text; put one beside GOOD, or pass tokenizer="
                )
            size = self._block_size(lm)
            block = [first, *islice(documents, size - 1)]
            while block:
                with self.track_time("block"):
                    outputs = list(self._continued(lm, block))
                yield from outputs
                block = list(islice(documents, size))

    def _with_text(self, data: "DocumentsPipeline") -> Iterator[Document]:
        for document in data or ():
            if document.text and document.text.strip():
                yield document
            else:
                self.stat_update("empty documents")

    def _block_size(self, lm: ContrastiveLM) -> int:
        """Return how many documents are decoded together.

        In static batches, the noise of a dropout BAD depends on the batch, so each document is decoded alone.
        """
        if lm.static_reason and any(model.noisy for model in lm.pair.models(self.params)):
            return 1
        return max(1, _BATCHES * lm.max_num_seqs // self.params.n)

    def _continued(self, lm: ContrastiveLM, documents: list[Document]) -> Iterator[Document]:
        """Iterate over the continuations of a block of documents."""
        prompt_ids = partial(lm.prompt_ids, parse_special=self.parse_special)
        longest = lm.longest_prompt(self.params)
        texts = [SeedText(_id_of(document), document.text) for document in documents]
        seeds = [encode_text(text, prompt_ids, self.prefix_tokens, longest) for text in texts]
        token_ids = [seed.token_ids for seed in seeds]
        lm.pair.check(token_ids, self.params, [f"seed {seed.id}" for seed in seeds])
        pairs = [(seed, index) for seed in range(len(seeds)) for index in range(self.params.n)]
        outputs: dict[int, CompletionOutput] = {}
        prompts = Prompts(token_ids, (seed.id for seed in seeds))
        lm.continue_sequences(prompts, pairs, self.params, on_finished=outputs.__setitem__)
        for place, (seed, _) in enumerate(pairs):
            yield self._document(lm, documents[seed], seeds[seed], outputs[place])

    def _document(self, lm: ContrastiveLM, source: Document, seed: Seed, drawn: CompletionOutput) -> Document:
        row = record(lm, seed, drawn, self.params.skip_special_tokens)
        self.stat_update("continuations", f"finish_reason {drawn.finish_reason}")
        self.stat_update("new_tokens", value=len(drawn.token_ids))
        text = row.pop("text")
        return Document(text, f"{seed.id}#{drawn.index}", metadata=source.metadata | row)


def _id_of(document: Document) -> str:
    """Return a document's id as text. Readers take numbers from JSON lines as they are."""
    found = own_id("documents", document.id)
    if found is None:
        raise InputError(f"documents: one has no id, which would key its noise; its text is {shown(document.text)}")
    return found


def choose_device(task: int, device: Any, threads: int | None) -> None:
    """Make this process use one of several GPUs, and some of the CPU's threads.

    Args:
        task: number of the task.
        device: the device that was asked for, if any; "cuda:1" and the CPU need no choice.
        threads: CPU threads; None for torch's default.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device in (None, "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(task % torch.cuda.device_count())
