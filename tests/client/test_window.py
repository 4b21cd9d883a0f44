"""The window against a plain model: any reads, any acknowledgements."""

from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from trunkline._shared.window import Window


@given(
    st.lists(st.binary(min_size=1, max_size=50), max_size=20),
    st.lists(st.integers(0, 400), max_size=20),
)
def test_digests_and_offsets_are_those_of_the_bytes(parts: list[bytes], acks: list[int]) -> None:
    window, taken = Window(), b""
    for index in range(max(len(parts), len(acks))):
        if index < len(parts):
            chunk = window.take(parts[index])
            assert (chunk.offset, chunk.prefix_crc32) == (len(taken), crc32(taken))
            taken += parts[index]
        if index < len(acks):
            window.acknowledge(min(acks[index], len(taken)))
        assert window.end == len(taken)
        assert window.crc32 == crc32(taken)
        assert window.stored_crc32 == crc32(taken[: window.stored])
        assert b"".join(c.content for c in window.unstored()) == taken[window.stored :]
        assert all(c.crc32 == crc32(c.content) for c in window.unstored())


@given(st.binary(min_size=2, max_size=50), st.data())
def test_a_chunk_splits_anywhere(content: bytes, choose: st.DataObject) -> None:
    chunk = Window(100, 7).take(content)
    head, rest = chunk.split(choose.draw(st.integers(101, 99 + len(content))))
    assert head.content + rest.content == content
    assert rest.offset == head.end
    assert rest.prefix_crc32 == crc32(head.content, 7)
