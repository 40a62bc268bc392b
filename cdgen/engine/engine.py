"""The decode loop: texts in lockstep, both models on the same tokens, the next in the place of each that ends.

The loop knows nothing of caches and models. It has one of two backends: `cdgen.engine.paged_backend.PagedBackend`,
which takes a new text wherever one has ended, and `cdgen.engine.static_backend.StaticBackend`, for any model of
transformers, which takes one batch and runs it to its end. A backend has

    admit(request, most)        how many of a request's texts may start now, 0 to `most`; room for them is set aside
    start([(request, n), ...])  (cache_rows, outputs): computes what prompts it must, and starts n texts of each
    step(texts, cache_rows, lengths) outputs of both models on the newest token of every running text
    sample(outputs, rows, ...)  draws one token a row from outputs
    steps(..., rows, count)     tokens of so many steps, drawn without a look by the host
    sync_every                  steps that the backend would rather draw so; 1: `steps` is not called
    release(cache_rows)         ends texts
    close()                     frees what the backend holds on its device; nothing is called afterwards
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import repeat

import torch

from cdgen.engine.ngrams import repeated_ngram_bans
from cdgen.engine.outputs import TokenLogprobs
from cdgen.engine.text import StopStrings, decode_after
from cdgen.errors import InputError
from cdgen.hardware import tf32_products
from cdgen.models.language_model import LanguageModel
from cdgen.rng import private_noise
from cdgen_kernels.codes import FAULTS
from cdgen_kernels.ops import RowFault, SamplingTensors, make_sampling_tensors


@dataclass
class Pair:
    """GOOD, BAD (or None) and what they share."""

    good: LanguageModel
    bad: LanguageModel | None
    tokenizer: object | None
    vocab_size: int  # token ids in use; the padding of wider output layers lies behind
    eos_token_ids: tuple[int, ...]

    def models(self, params):
        """The models that `params` need: GOOD, and BAD where there is contrast."""
        return [self.good, self.bad] if params.contrast_strength else [self.good]


@dataclass
class Continuation:
    """One drawn text; fields as of :class:`cdgen.engine.outputs.CompletionOutput`, `text` None without a tokenizer."""

    token_ids: list[int]
    text: str | None
    finish_reason: str
    logprobs: list[TokenLogprobs] | None


@dataclass
class Request:
    """A prompt and those of its texts that have not started: (place among the results, number of the text) pairs."""

    token_ids: list[int]
    texts: deque
    sequence: int  # number of its first text, which is the prompt's own
    cache_row: int | None = None  # the backend's, where it holds the prompt
    outputs: list[torch.Tensor] | None = None  # of each model on the prompt's last token


@dataclass
class _Text:
    """The host's part of a running text."""

    place: int
    prompt: list[int]
    cache_row: int
    stop: StopStrings | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass
class Texts:
    """The device's part of the running texts, a row each."""

    cache_row: torch.Tensor  # int32 [A], of the backend
    ids: torch.Tensor  # int64 [A], the newest token, which the models have not read
    position: torch.Tensor  # int64 [A], its place in the text
    sequence: torch.Tensor  # int64 [A]
    history: torch.Tensor | None  # int64 [A, L], the whole text from the left, where n-grams are banned

    def apart(self, keep):
        """The rows `keep`, int64 [A']."""
        history = self.history if self.history is None else self.history[keep]
        return Texts(self.cache_row[keep], self.ids[keep], self.position[keep], self.sequence[keep], history)

    def joined(self, other):
        histories = None if self.history is None else torch.cat([self.history, other.history])
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("cache_row", "ids", "position", "sequence"))
        return Texts(*map(torch.cat, pairs), histories)


class Engine:
    """Draws every text of the requests.

    Args:
        pair: :class:`Pair`. backend: see above.
        params: :class:`~cdgen.engine.sampling_params.SamplingParams`; `n` has done its work.
        requests: list of :class:`Request`.
        on_tokens: called after each step with the number of tokens drawn. on_finished: called with the number of texts
            that ended.
    """

    def __init__(self, pair, backend, requests, params, on_tokens=None, on_finished=None):
        self.pair, self.backend, self.params = pair, backend, params
        self.waiting = deque(requests)
        self.results = {}
        self.device = pair.good.device
        self._tell = on_tokens or _ignore, on_finished or _ignore
        self._stop_ids = set(params.stop_token_ids) | (set() if params.ignore_eos else set(pair.eos_token_ids))
        self._stop_tensor = torch.tensor(sorted(self._stop_ids), dtype=torch.long, device=self.device)
        self._length = max(len(request.token_ids) for request in requests) + params.max_tokens
        self._row = make_sampling_tensors(  # one row, that all rows are like
            1,
            alpha=params.alpha,
            good_weight=params.good_weight,
            contrast_strength=params.contrast_strength,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            seed=params.seed,
            device=self.device,
        )
        self._same = SamplingTensors(*self._row)  # grown as needed
        self._needs_host = params.logprobs or params.min_tokens or params.no_repeat_ngram_size
        self.texts, self.state = [], None

    def run(self):
        """Returns a list of :class:`Continuation`, by the texts' places.

        Raises:
            InputError: a text from which nothing can be drawn: NaN in the logits, or everything banned.
        """
        try:
            with torch.inference_mode(), private_noise(self.device), tf32_products(self.device):
                self.refill()
                while self.texts:
                    self.step()
                    self.refill()
        finally:  # now, since a traceback that someone keeps would keep the cache alive
            self.backend.close()
        return [self.results[place] for place in range(len(self.results))]

    def step(self):
        """The next token of every running text, or the next few."""
        cache_rows = [text.cache_row for text in self.texts]
        lengths = [len(text.prompt) + len(text.tokens) for text in self.texts]
        left = self.params.max_tokens - max(len(text.tokens) for text in self.texts)
        if not self._needs_host and self.backend.sync_every > 1:
            count = min(self.backend.sync_every, left)
            drawn = self.backend.steps(self.state, cache_rows, lengths, self._rows(self.state), count).tolist()
            sound = next((at for at, tokens in enumerate(drawn) if min(tokens) < 0), count)
            self.state.position = self.state.position + sound
            if sound:  # what comes after a row without an answer is drawn again, with a look
                self.state.ids = torch.tensor(drawn[sound - 1], device=self.device)
                self.texts, self.state = self._accept(self.texts, self.state, drawn[:sound])
                return
        outputs = self.backend.step(self.state, cache_rows, lengths)
        self.texts, self.state = self._draw(self.texts, self.state, outputs)

    def refill(self):
        """Start waiting texts where there is room, and draw their first tokens."""
        while self.waiting and (starts := self._admitted()):
            cache_rows, outputs = self.backend.start(starts)
            texts, state = self._begin(starts, cache_rows)
            texts, state = self._draw(texts, state, outputs)
            self.state = state if self.state is None else self.state.joined(state)
            self.texts += texts

    def _admitted(self):
        room, starts = self.backend.max_num_seqs - len(self.texts), []
        while self.waiting and room:
            request = self.waiting[0]
            count = self.backend.admit(request, min(room, len(request.texts)))
            if not count:
                break
            starts.append((request, count))
            room -= count
            if count < len(request.texts):
                break
            self.waiting.popleft()
        return starts

    def _begin(self, starts, cache_rows):
        """(texts, state) of the texts that start, before their first token."""
        texts, sequence, strings = [], [], bool(self.params.stop)
        for (request, _), own in zip(starts, cache_rows, strict=True):
            for cache_row in own:
                place, number = request.texts.popleft()
                watch = StopStrings(self.pair.tokenizer, request.token_ids, self.params) if strings else None
                texts.append(_Text(place, request.token_ids, cache_row, watch))
                sequence.append(number)
        history = None
        if self.params.no_repeat_ngram_size:
            padded = [text.prompt + [0] * (self._length - len(text.prompt)) for text in texts]
            history = torch.tensor(padded, device=self.device)
        last = [len(text.prompt) - 1 for text in texts]
        ids = torch.tensor([text.prompt[-1] for text in texts], device=self.device)
        cache_row = torch.tensor([text.cache_row for text in texts], dtype=torch.int32, device=self.device)
        position, sequence = torch.tensor([last, sequence], device=self.device).unbind()
        return texts, Texts(cache_row, ids, position, sequence, history)

    def _draw(self, texts, state, outputs):
        """Draw a token for each text from the models' outputs; (texts, state) of those that go on."""
        state.position = state.position + 1
        options = {"banned": self._bans(texts, state), "logprobs": self.params.logprobs}
        try:
            drawn = self.backend.sample(outputs, self._rows(state), **options)
        except RowFault as error:  # on the CPU, where the op looks at once
            raise self._fault(texts[error.row], error) from error
        state.ids = drawn.token
        if state.history is not None:
            state.history.scatter_(1, state.position.unsqueeze(1), drawn.token.unsqueeze(1))
        tokens = drawn.token.tolist()
        if min(tokens) < 0:
            row = next(row for row, token in enumerate(tokens) if token < 0)
            raise self._fault(texts[row], f"row {row}: {FAULTS[tokens[row]]}")
        logprobs = torch.stack(drawn[1:], 1).tolist() if self.params.logprobs else None
        return self._accept(texts, state, [tokens], logprobs)

    def _accept(self, texts, state, drawn, logprobs=None):
        """Add the tokens of one or more steps, lists [steps][A], to the texts; (texts, state) of those that go on."""
        logprobs = repeat(None) if logprobs is None else logprobs
        going = dict(enumerate(zip(texts, logprobs, strict=False)))
        for tokens in drawn:
            self._tell[0](len(going))
            going = {row: own for row, own in going.items() if not self._ends(own[0], tokens[row], own[1])}
        if len(going) == len(texts):
            return texts, state
        ended = [text.cache_row for row, text in enumerate(texts) if row not in going]
        self.backend.release(ended)
        self._tell[1](len(ended))
        return [texts[row] for row in going], state.apart(
            torch.tensor(list(going), dtype=torch.long, device=self.device)
        )

    def _ends(self, text, token, logprobs):
        """Add a token to a text; whether that ends it."""
        params = self.params
        text.tokens.append(token)
        if logprobs is not None:
            logprob, good, bad = logprobs
            text.logprobs.append(TokenLogprobs(logprob, good, bad if params.contrast_strength else None))
        if token in self._stop_ids:
            return self._finish(text, "stop", shown=text.tokens[:-1])
        cut = text.stop.append(token) if text.stop else None
        if cut is not None and len(text.tokens) >= params.min_tokens:
            return self._finish(text, "stop", cut)
        return len(text.tokens) == params.max_tokens and self._finish(text, "length", shown=text.tokens)

    def _finish(self, text, reason, cut=None, shown=()):
        if cut is None and self.pair.tokenizer is not None:
            cut = decode_after(self.pair.tokenizer, text.prompt, list(shown), self.params.skip_special_tokens)
        logprobs = text.logprobs if self.params.logprobs else None
        self.results[text.place] = Continuation(text.tokens, cut, reason, logprobs)
        return True

    def _rows(self, state):
        """:class:`SamplingTensors` for the next token of every text."""
        count = len(state.ids)
        if len(self._same.margin) < count:
            self._same = SamplingTensors(*(x.repeat(count) for x in self._row))
        return SamplingTensors(*(x[:count] for x in self._same))._replace(
            sequence=state.sequence, position=state.position
        )

    def _bans(self, texts, state):
        """int64 [A, N] tokens that may not be drawn, or None. `state.position` is that of the token to be drawn."""
        bans = []
        if self.params.min_tokens and len(self._stop_tensor):
            early = torch.tensor([len(text.tokens) < self.params.min_tokens for text in texts], device=self.device)
            bans.append(torch.where(early.unsqueeze(1), self._stop_tensor, -1))
        if self.params.no_repeat_ngram_size:
            length = int(state.position.max())
            start = length - state.position  # [A], of each text when all end together
            at = (torch.arange(length, device=self.device) - start.unsqueeze(1)).clamp(min=0)
            bans.append(repeated_ngram_bans(state.history.gather(1, at), start, self.params.no_repeat_ngram_size))
        return torch.cat(bans, 1) if bans else None

    def _fault(self, text, error):
        return InputError(f"nothing can be drawn after {len(text.tokens)} new tokens: {error}")


def _ignore(count):
    pass
