"""Prompts to token ids, and identifiers to token paths. The same for ranking and training.

An identifier such as `[12]` is one token in the embedded model and several in most others. The paths
of a pool's identifiers form a trie; a model's probabilities over the identifiers are the product of its
probabilities at each branching of the trie, renormalised there over the branches that exist. With
one-token identifiers that is a plain softmax over the pool.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

from r1ranker.errors import BackendError
from r1ranker.prompts import NO_THOUGHT, Prompt

TokenPath = tuple[int, ...]
YES_NO = ("Yes", "No")
"""What a judge says at the end of a block."""
HEADS, HEAD_CHARACTERS = 256, 20_000
PIECES, PIECE_CHARACTERS = 4096, 2000
"""Texts whose tokens are kept, and how long each may be: some thousand whole prompts would fill the memory."""
FEW_TOKENS = 8
"""Characters a token in a text of few tokens; most texts have half of that."""
CUT_WORD = 16
"""Tokens that a word or a tag which is cut may have more than the whole one."""

_OURS = re.compile(r"\[\d+\]|</?(think|answer)>")
_WORDS = re.compile(r"[\w\s]+")
_MARK = re.compile(r"<<[^<>\s]+>>|<[|｜/]?[^<>\s{}()%'\"]+>|\[/?[A-Z][A-Z_]+\]")
"""What a template may write around turns that is no token: `[INST]` and `<<SYS>>` of Llama 2, `<|user|>` of Zephyr."""
_TEMPLATE = "Give the tokenizer a template that takes a conversation of one message by the user, or none"


@dataclass(frozen=True)
class IdentifierTrie:
    """paths: the tokens of each identifier. branches: for each path that forks, the tokens after it."""

    paths: dict[int, TokenPath]
    branches: dict[TokenPath, TokenPath]

    @property
    def openings(self) -> tuple[TokenPath, ...]:
        """What has to be read to know every branching: each one but the root, with the paths that lead there."""
        return tuple(sorted({node[:end] for node in self.branches for end in range(1, len(node) + 1)}))

    def allowed(self, identifier: int) -> tuple[TokenPath, ...]:
        """For each token of the identifier, the tokens that could stand there."""
        path = self.paths[identifier]
        return tuple(self.branches.get(path[:i], (path[i],)) for i in range(len(path)))


def build_trie(paths: dict[int, TokenPath]) -> IdentifierTrie:
    """The trie over the given paths; no path may be the beginning of another."""
    children: dict[TokenPath, set[int]] = {}
    for path in paths.values():
        for i, token in enumerate(path):
            children.setdefault(path[:i], set()).add(token)
    ends = set(paths.values())
    if len(ends) < len(paths) or ends & set(children):
        raise BackendError("the tokenizer does not keep identifiers such as [1] and [12] apart; use another model")
    return IdentifierTrie(paths, {node: tuple(sorted(next_)) for node, next_ in children.items() if len(next_) > 1})


def control_pattern(tokenizer: Any) -> re.Pattern[str]:
    """What has a meaning of its own to a tokenizer: special and added tokens, and what marks turns in its template.

    Not among them: this package's identifiers and tags, white space, and words that a vocabulary was extended by.
    """
    special = {str(token) for token in tokenizer.all_special_tokens}
    added = {str(token.content) for token in tokenizer.added_tokens_decoder.values() if not token.special}
    template = tokenizer.chat_template or ""
    sources = template.values() if isinstance(template, dict) else [template]
    marks = {mark for source in sources for mark in _MARK.findall(source)}
    special |= {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = special | {token for token in added | marks if not _WORDS.fullmatch(token)}
    control = sorted({t.strip() for t in tokens if not _OURS.fullmatch(t)} - {""}, key=len, reverse=True)
    by_first: dict[str, list[str]] = {}  # of thousands of tokens, only those are tried that begin as the text does
    for token in control:
        # Tokens may be found in normalised text, so in any case; but a special word only as it stands.
        rest = re.escape(token[1:])
        by_first.setdefault(token[0], []).append(rest if _WORDS.fullmatch(token) else f"(?i:{rest})")
    return re.compile("|".join(f"{re.escape(c)}(?:{'|'.join(rests)})" for c, rests in by_first.items()) or r"(?!)")


def _in_words(match: re.Match[str]) -> str:
    """A control token as words in brackets; one that is a word itself, as its letters apart."""
    token = match[0]
    inner = token.strip("<>[]{}|｜«» \t\n")
    return f"({inner})" if 0 < len(inner) < len(token) else " ".join(token) if len(token) > 1 else " "


def _kept(encode: Callable[[str], list[int]], most: int, characters: int) -> Callable[[str], list[int]]:
    """`encode`, which remembers as many of the last texts, but none that is longer than so many characters."""
    known = lru_cache(maxsize=most)(encode)
    return lambda text: known(text) if len(text) <= characters else encode(text)


class Encoder:
    """A tokenizer that knows prompts. `tokenizer` is a Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._control = control_pattern(tokenizer)
        self._identifier_paths: dict[int, TokenPath] = {}
        # An episode asks for the same text and the same few answers again and again.
        self._head_ids = _kept(lambda text: self.encode_text(self.head(text)), HEADS, HEAD_CHARACTERS)
        self._piece_ids = _kept(self.encode_text, PIECES, PIECE_CHARACTERS)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, through the chat template when the tokenizer has one.

        Text, past and prefill are encoded piece by piece, so that a prompt which went on begins as it did.
        """
        pieces = (self._piece_ids(piece) for piece in (*prompt.past, prompt.prefill) if piece)
        return list(chain(self._head_ids(prompt.text), *pieces))

    def length(self, prompt: Prompt) -> int:
        """Tokens that stand in a row: of blocks, which stand side by side, the longest one counts."""
        if not prompt.blocks:
            return len(self.encode(prompt))
        head, blocks, question = self.blocks(prompt)
        return len(head) + max(map(len, blocks)) + len(question)

    def beyond(self, prompt: Prompt, most: int) -> int:
        """At least so many tokens a prompt has, where its beginning alone has more than `most`; else 0, also of blocks.

        So a prompt that is far too long is known for it without being read to its end.
        """
        size = FEW_TOKENS * most
        while not prompt.blocks and size < len(prompt.text):
            space = prompt.text.rfind(" ", size // 2, size)
            begins = self.harmless(prompt.text[: size if space < 0 else space])
            if (tokens := len(self.encode_text(begins)) - CUT_WORD) > most:
                return tokens
            size *= 2
        return 0

    def head(self, text: str) -> str:
        """How a prompt of this text begins: as a turn of the chat template, or behind the tokenizer's first token.

        Raises BackendError for a template that refuses a turn of the user, or leaves it out.
        """
        text = self.harmless(text)
        if not self.tokenizer.chat_template:
            return f"{self.tokenizer.bos_token or ''}{text}\n"
        turn = [{"role": "user", "content": text}]
        try:
            head = str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program: it may fail in any way
            raise BackendError(
                f"the chat template of the model fails on a user's message: {error}. {_TEMPLATE}"
            ) from error
        if text.strip() not in head:
            raise BackendError(f"the chat template of the model changes a user's message or leaves it out. {_TEMPLATE}")
        return head

    def harmless(self, text: str) -> str:
        """The text without what this tokenizer, or its chat template, would read as a turn or a control token.

        Identifiers and the tags of thought and answer stay: prompts write them on purpose.
        """
        while (found := self._control.sub(_in_words, text)) != text:
            text = found
        return text

    def blocks(self, prompt: Prompt) -> tuple[TokenPath, tuple[TokenPath, ...], TokenPath]:
        """(head, blocks, question) of a prompt in layout `blocks`; where a judge is asked nothing, no question.

        A judge speaks at the end of every block, or of the question behind it: there the turn ends, and the model's own
        begins.
        """
        opening, closing = self._turn
        texts = [self.harmless(text) for text in prompt.blocks]
        question = f"{self.harmless(prompt.prefill)}{closing}" if prompt.prefill else ""
        if prompt.labels:
            names = self.label_texts(len(texts))
            texts = [f"{names[k - 1]} {text}" for k, text in zip(prompt.labels, texts, strict=True)]
            question += NO_THOUGHT
        end = "\n" if question else closing
        pieces = (f"{opening}{self.harmless(prompt.text)}", *(f"{text}{end}" for text in texts), question)
        head, *blocks, asked = (tuple(self._piece_ids(piece)) for piece in pieces)
        return head, tuple(blocks), asked

    def yes_no(self) -> tuple[int, int]:
        """The tokens that a judge weighs against each other."""
        yes, no = (self.encode_text(word)[0] for word in YES_NO)
        if yes == no:
            raise BackendError("the tokenizer begins Yes and No with the same token, so no judge can say either")
        return yes, no

    def label_texts(self, n: int) -> list[str]:
        """Names of n blocks that are one token each: `[1]`.. where the tokenizer has them, else letters."""
        numbers = [f"[{k}]" for k in range(1, n + 1)]
        for names in (numbers, [letter for letter in string.ascii_letters if len(self._piece_ids(letter)) == 1]):
            if len(names) >= n and all(len(self._piece_ids(name)) == 1 for name in names[:n]):
                return names[:n]
        raise BackendError(
            f"the tokenizer has no {n} names of one token each for candidates; use smaller pools, or the judge readout"
        )

    def label_ids(self, n: int) -> list[int]:
        """Their tokens."""
        return [self._piece_ids(name)[0] for name in self.label_texts(n)]

    @cached_property
    def _turn(self) -> tuple[str, str]:
        """What stands before a user's text, and what ends their turn and opens the assistant's."""
        opening, closing = self.head("\N{SECTION SIGN}").split("\N{SECTION SIGN}")
        return opening, closing

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text, nothing added."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # lengths are told elsewhere
        return list(ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion; padding and end-of-sequence tokens are dropped."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def trie(self, pool: Sequence[int]) -> IdentifierTrie:
        """The trie of a pool's identifiers."""
        for k in pool:
            if k not in self._identifier_paths:
                self._identifier_paths[k] = tuple(self.encode_text(f"[{k}]"))
        return build_trie({k: self._identifier_paths[k] for k in pool})


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices grouped by like length, at most `max_tokens` padded tokens a group (at least one index)."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if group and lengths[index] * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
