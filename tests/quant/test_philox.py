import pytest
import torch

from actbench.quant.philox import philox, signs, uniform

CPU = torch.device("cpu")
MASK = 0xFFFFFFFF


def plain_philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox 4x32-10 from the paper's figure, in Python's integers."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(
    ("seed", "stream", "group"),
    [(0, 0, 0), (2**64 - 1, 2**64 - 1, 2**31), (0x299F31D0A4093822, 0x0370734413198A2E, 5), (7, 2**33 + 1, 2**40 + 3)],
)
def test_words_are_those_of_the_paper(seed: int, stream: int, group: int) -> None:
    expected = plain_philox((seed & MASK, seed >> 32), (group & MASK, group >> 32, stream & MASK, stream >> 32))
    assert philox(seed, stream, group, 1, CPU).tolist() == [expected]


def test_published_known_answers() -> None:
    """Random123's kat_vectors for philox4x32 with 10 rounds: all zeros, and the digits of π (counter, then key)."""
    assert philox(0, 0, 0, 1, CPU)[0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    found = philox(0x299F31D0A4093822, 0x0370734413198A2E, 0x85A308D3243F6A88 - 2**64, 1, CPU)
    assert found[0].tolist() == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_a_number_depends_on_its_element_alone() -> None:
    whole = uniform(3, 5, 0, 1001, CPU)
    assert torch.equal(torch.cat([uniform(3, 5, 0, 400, CPU), uniform(3, 5, 400, 601, CPU)]), whole)


def test_uniform_lies_in_the_half_open_interval() -> None:
    u = uniform(1, 2, 0, 2**18, CPU)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    # 5 standard errors of the mean of n uniforms, each of variance 1/12.
    assert abs(float(u.double().mean()) - 0.5) < 5 * (1 / 12 / u.numel()) ** 0.5


def test_signs_are_fair_and_independent_of_their_neighbours() -> None:
    s = signs(9, 4, 2**18, CPU)
    assert set(s.tolist()) == {-1.0, 1.0}
    for product in (s, s[1:] * s[:-1], s[128:] * s[:-128]):
        assert abs(float(product.double().mean())) < 5 * product.numel() ** -0.5
