"""Jobs: sequences that are decoded together, on the backend that supports the models."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from cdgen.engine.engine import Engine
from cdgen.engine.kept_backend import KeptBackend
from cdgen.engine.model_pair import ModelPair
from cdgen.engine.outputs import CompletionOutput
from cdgen.engine.paged_backend import CacheOptions
from cdgen.engine.requests import Prompts, batches, make_requests
from cdgen.engine.sampling_params import FIELDS, SamplingParams
from cdgen.engine.static_backend import StaticBackend

# Fields that may differ between the sequences of a batch because the device holds them per row. `n` and `max_tokens`
# may differ, too: the requests hold them.
_ROW_TENSORS = (
    "alpha", "contrast_strength", "good_weight", "temperature", "top_k", "top_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed",
)  # fmt: skip
_COMMON = tuple(name for name in FIELDS if name not in ("n", "max_tokens", *_ROW_TENSORS))


@dataclass(frozen=True)
class Job:
    """Sequences to decode, and the functions that receive the results.

    Attributes:
        prompts: all prompts; a job may decode some of them.
        sequences: (prompt, continuation) index pairs; the pairs of a prompt must be adjacent.
        params: sampling parameters.
        on_finished: called for each sequence that finishes, with its index in `sequences` and its output.
        on_tokens: called after each round of steps with the number of tokens drawn.
        own: the parameters of each prompt, which agree with `params` except in fields that may differ in a batch; None
            if all are `params`.
    """

    prompts: Prompts
    sequences: Sequence[tuple[int, int]]
    params: SamplingParams
    on_finished: Callable[[int, CompletionOutput], None]
    on_tokens: Callable[[int], None] | None
    own: Sequence[SamplingParams] | None = None

    @property
    def varied(self) -> bool:
        """Whether rows of a batch have sampling parameters of their own."""
        if self.own is None:
            return False
        prompts = {prompt for prompt, _ in self.sequences}
        return len({tuple(getattr(self.own[prompt], name) for name in _ROW_TENSORS) for prompt in prompts}) > 1

    def part(self, places: Sequence[int], params: SamplingParams) -> "Job":
        """Return the job of the sequences with these indices, which finish under their indices in this job."""

        def finished(place: int, output: CompletionOutput) -> None:
            self.on_finished(places[place], output)

        return replace(self, sequences=[self.sequences[place] for place in places], params=params, on_finished=finished)


def batchable(job: Job, pair: ModelPair, static: bool) -> Iterator[Job]:
    """Split a job whose prompts have parameters of their own into the fewest jobs whose sequences can share batches.

    Args:
        job: the job.
        pair: the models. The noise of a BAD is keyed by one seed, which must not differ in a batch.
        static: whether the jobs are decoded in static batches, in which `n` must not differ either.
    """
    assert job.own is not None
    keys: dict[int, tuple[object, ...]] = {}  # the keys are id()s, since hashing parameters is slower
    places: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, (prompt, _) in enumerate(job.sequences):
        own = job.own[prompt]
        if id(own) not in keys:
            noisy = any(model.noisy for model in pair.models(own))
            common = [getattr(own, name) for name in _COMMON]
            listed = not static and own.lists_candidates
            keys[id(own)] = (*common, own.contrast_strength != 0, listed, noisy and own.seed, static and own.n)
        places[keys[id(own)]].append(place)
    for members in places.values():
        each = (job.own[job.sequences[place][0]] for place in members)
        # The job's parameters must have a penalty if any prompt's have one: otherwise the backend computes none.
        yield job.part(members, max(each, key=lambda own: own.penalizes))


def decode_paged(job: Job, pair: ModelPair, kept: KeptBackend, options: CacheOptions, max_num_seqs: int) -> None:
    """Decode a job with continuous batching, on a backend that is kept."""
    prompts, sequences = job.prompts.token_ids, job.sequences
    if job.own is None:
        longest = pair.longest_sequence(job.params, (len(prompts[prompt]) for prompt, _ in sequences))
    else:
        own = job.own
        longest = max(pair.longest_sequence(own[prompt], [len(prompts[prompt])]) for prompt, _ in sequences)
    backend = kept.take(
        pair,
        job.params,
        options,
        size=min(max_num_seqs, len(sequences)),
        largest=max_num_seqs,
        longest=longest,
        varied=job.varied,
    )
    requests = make_requests(job.prompts, sequences, job.own)
    Engine(pair, backend, requests, job.params, job.on_finished, job.on_tokens).run()
    kept.keep(backend)


def decode_static(job: Job, pair: ModelPair, max_num_seqs: int) -> None:
    """Decode a job in batches that run until all of their sequences have finished."""
    done, varied = 0, job.varied
    for batch in batches(job.sequences, job.params.n, max_num_seqs):
        static = StaticBackend(pair, job.params, len(batch), varied)
        requests = make_requests(job.prompts, batch, job.own)

        def finished(place: int, output: CompletionOutput, before: int = done) -> None:
            job.on_finished(before + place, output)

        Engine(pair, static, requests, job.params, finished, job.on_tokens).run()
        static.close()
        done += len(batch)
