"""The noise: Philox 4x32-10 against its published test vectors, and the Gumbel transform in its upper tail."""

import torch

from cdgen_kernels.reference import gumbel, philox, philox_block

# Known answers from kat_vectors of Random123 (Salmon et al.): counter[4], key[2], output[4].
VECTORS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def test_philox_gives_the_known_answers() -> None:
    for counter, key, words in VECTORS:
        drawn = philox_block(*(torch.tensor([x]) for x in counter + key))
        assert [x.item() for x in drawn] == words


def test_the_counter_has_the_documented_layout() -> None:
    seed, sequence, position = 0x0123456789ABCDEF, 0x0FEDCBA987654321, 77
    drawn = philox(*(torch.tensor([x]) for x in (seed, sequence, position)), 12)
    block = philox_block(*(torch.tensor([x]) for x in (2, 77, 0x87654321, 0x0FEDCBA9, 0x89ABCDEF, 0x01234567)))
    assert drawn[0, 8:].tolist() == [x.item() for x in block]


def test_every_part_of_the_counter_changes_all_words() -> None:
    one = torch.ones(1, dtype=torch.int64)
    base = philox(one, one, one, 64)
    high = one << 32
    for other in ((one + high, one, one), (one, one + high, one), (one, one, one + 1), (one + 1, one, one)):
        assert not (philox(*other, 64) == base).any()
    assert len(set(base[0].tolist())) == 64


def test_gumbel_is_exact_in_the_upper_tail() -> None:
    words = torch.tensor([0, 1, 2, 2**31, 2**32 - 1])
    noise = gumbel(words)
    v = (words.double() + 0.5) / 2**32
    assert torch.allclose(noise, -torch.log(-torch.log(1 - v)), rtol=1e-6)
    assert noise.isfinite().all() and (noise.diff() < 0).all()
    assert abs(noise[0].item() - 33 * 0.6931471805599453) < 1e-9  # the smallest v is 2^-33, not 0
