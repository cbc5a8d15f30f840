"""Text out of tokens: the pieces are the whole, and stop texts never show."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hfa.data.tokenizers import StreamDecoder
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.serving.text import TextAssembler

TOKENIZER = ByteTokenizer()


def assemble(tokens: list[int], stop: list[str]) -> tuple[list[str], bool]:
    text = TextAssembler(StreamDecoder(TOKENIZER), stop)
    pieces = []
    for token in tokens:
        pieces.append(text.feed(token))
        if text.stopped:
            break
    return [*pieces, text.flush()], text.stopped


def test_a_character_comes_whole_and_what_may_be_a_stop_text_waits():
    assert assemble(list("né".encode()), [])[0] == ["n", "", "é", ""]
    assert assemble(list(b"so ENTER"), ["END"])[0] == ["s", "o", " ", "", "", "ENT", "", "ER", ""]
    assert assemble(list(b"so END of it"), ["END"]) == (["s", "o", " ", "", "", "", ""], True)


def test_what_was_held_back_comes_at_the_end():
    assert assemble(list(b"the EN"), ["END"]) == (["t", "h", "e", " ", "", "", "EN"], False)
    assert assemble(list("é".encode())[:1], []) == (["", "\ufffd"], False)


@given(st.lists(st.integers(0, 255), max_size=60))
def test_without_stop_texts_the_pieces_are_the_decoded_whole(tokens):
    assert "".join(assemble(tokens, [])[0]) == TOKENIZER.decode(tokens)


@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
def test_the_text_ends_before_the_first_stop_text(text, stop):
    pieces, stopped = assemble(list(text.encode()), stop)
    whole = "".join(pieces)
    assert text.startswith(whole)
    assert not any(one in whole for one in stop)
    if stopped:
        assert any(text[len(whole) :].startswith(one) for one in stop)
    else:
        assert whole == text
