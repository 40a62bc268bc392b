"""The in-place cache: the logits of transformers' own cache, no copying, and forks."""

import pytest
import torch
import transformers

from cdgen.models.in_place_cache import InPlaceCache
from cdgen.models.language_model import LanguageModel
from tests.helpers.families import FAMILIES, family, ids


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_those_of_transformers_own_cache(name) -> None:
    model = family(name)
    tokens = ids(2, 14)
    ours, theirs = LanguageModel(model, name).new_cache(14), transformers.DynamicCache(config=model.config)
    pointers = None
    with torch.inference_mode():
        for start, end in ((0, 5), *((at, at + 1) for at in range(5, 14))):
            mask = torch.ones(2, end, dtype=torch.long)
            a, b = (
                model(tokens[:, start:end], attention_mask=mask, past_key_values=c, use_cache=True).logits
                for c in (ours, theirs)
            )
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            now = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in ours.layers]
            assert pointers in (None, now), "the buffers moved"
            pointers = now


def test_cache_is_written_in_place_and_read_as_views() -> None:
    cache = InPlaceCache(1, 8)
    first = torch.randn(2, 3, 4, 5)
    keys, _ = cache.update(first, -first, 0)
    more = torch.randn(2, 3, 1, 5)
    keys_again, values = cache.update(more, -more, 0)
    assert keys.data_ptr() == keys_again.data_ptr() == cache.layers[0].keys.data_ptr()
    assert torch.equal(keys_again, torch.cat([first, more], 2)) and torch.equal(values, -keys_again)
    assert cache.get_seq_length() == 5 and cache.get_mask_sizes(1, 0) == (6, 0)


def test_forked_rows_copy_the_prefix_and_diverge() -> None:
    cache = InPlaceCache(1, 3)
    prefix = torch.randn(2, 1, 3, 4)
    cache.update(prefix, prefix, 0)
    forked = cache.fork(torch.tensor([1, 1, 0]), max_len=6)
    assert forked.layers[0].keys.shape == (3, 1, 6, 4)
    new = torch.randn(3, 1, 1, 4)
    keys, _ = forked.update(new, new, 0)
    assert torch.equal(keys[:, :, :3], prefix[[1, 1, 0]]) and torch.equal(keys[:, :, 3:], new)
    assert torch.equal(cache.layers[0].keys, prefix), "writing to the fork changed the original"
