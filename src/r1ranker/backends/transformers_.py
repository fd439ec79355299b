"""The default backend: any causal language model of the transformers library, on CPU or GPU."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from r1ranker.backends import blocks
from r1ranker.backends.base import STOP, Backend, Choice, Completion, PromptError, too_long
from r1ranker.backends.blocks import Blocks, Question
from r1ranker.backends.encoding import Encoder, IdentifierTrie, TokenPath, batches
from r1ranker.backends.kept import Kept
from r1ranker.backends.loading import end_ids, load
from r1ranker.backends.models import resolve
from r1ranker.backends.padding import left_pad, positions
from r1ranker.backends.prefix import PrefixCache, Row, read_rows
from r1ranker.backends.probe import keeps_prefixes, takes_padding
from r1ranker.backends.sampling import Settings, Trace, Written, check_logits, write
from r1ranker.backends.way import way_of
from r1ranker.prompts import Prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generated:
    """Token ids of one call; training keeps these, ranking keeps the text."""

    prompt_ids: list[int]
    completion_ids: list[int]
    truncated: bool
    computed: int
    """Tokens of the prompt that were not known from an earlier call."""
    trace: Trace | None = field(default=None, compare=False)
    """What the network said of each token, where that was asked for and the network is one that `sampling` drives."""


class TransformersBackend(Backend):
    """`TransformersBackend.load("nano")`, a hub name or a directory. `max_tokens` bounds a padded batch.

    It may be called from any thread: calls take turns, as the network and what is kept of prompts are one. Batches are
    faster than threads.
    """

    masks_blocks = True

    def __init__(self, network: Any, tokenizer: Any, *, name: str = "model", max_tokens: int | None = None) -> None:
        self.network = network
        self.encoder = Encoder(tokenizer)
        self.name = name
        on_cpu = network.device.type == "cpu"
        self.max_tokens = max_tokens or (2048 if on_cpu else 65536)
        # Read in pieces that stay in the processor's cache; write side by side, as each token costs a pass of its own.
        self.max_columns = max_tokens or (32768 if on_cpu else 65536)
        # Blocks of several pools in one row: weights are read once for all, and what a pass keeps still fits.
        self.max_row = 2048 if on_cpu else 4096
        self.kept: Kept | None = None  # what was read of candidates for any query, see `ranking.store`
        self._known: dict[Prompt, blocks.Known] = {}
        self._turn = threading.RLock()
        self._rows_known = network.get_input_embeddings().weight.shape[0]
        tag = self.encoder.encode_text(STOP)
        self._tag_is_many = len(tag) > 1
        ends = end_ids(tokenizer, network.config, getattr(network, "generation_config", None))
        self._ends = {*ends, *(() if self._tag_is_many else tag)}
        self.pads = takes_padding(network)
        self.keeps = self.pads and keeps_prefixes(network)
        self._prefixes = PrefixCache(network, self.pad_id, self.max_tokens) if self.keeps else None
        if not self.pads:
            log.warning("%s says other things beside padding: only prompts of equal length are read together", name)

    @classmethod
    def load(cls, model: str, *, device: str = "auto", dtype: str = "auto") -> TransformersBackend:
        """Raises BackendError with the remedy when the model cannot be loaded."""
        network, tokenizer = load(model, device, dtype)
        backend = cls(network, tokenizer, name=model)
        backend.trained_in = way_of(resolve(model))
        return backend

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 1024, temperature: float = 0.0
    ) -> list[Completion]:
        """See `Backend.generate`; prompts are batched by like length and left-padded."""
        return [
            Completion(
                text=self.encoder.decode(out.completion_ids),
                truncated=out.truncated,
                prompt_tokens=out.computed,
                generated_tokens=len(out.completion_ids),
            )
            for out in self.generate_ids(prompts, max_new_tokens=max_new_tokens, temperature=temperature)
        ]

    def generate_ids(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, temperature: float, traced: bool = False
    ) -> list[Generated]:
        """As `generate`, as token ids; traced: with `Generated.trace`."""
        with self._my_turn():
            return self._generate_ids(prompts, max_new_tokens, temperature, traced)

    def _generate_ids(
        self, prompts: Sequence[Prompt], max_new_tokens: int, temperature: float, traced: bool
    ) -> list[Generated]:
        encoded = self._encoded(prompts, max_new_tokens)
        self._check_lengths(encoded, max_new_tokens)
        settings = self._settings(max_new_tokens, temperature, traced)
        if self._prefixes and prompts and all(prompt.stays for prompt in prompts):
            written, computed = self._prefixes.write(_rows(prompts, encoded), settings)
            return [self._generated(*row) for row in zip(encoded, written, computed, strict=True)]
        ours = self._prefixes and all(len(ids) > 1 for ids in encoded)  # a prompt is read but for its last token
        batch, room = (self._write, self.max_columns) if ours else (self._generate, self.max_tokens)
        results: dict[int, Generated] = {}
        for group in self._groups([len(ids) + max_new_tokens for ids in encoded], room):
            for i, row in zip(group, batch([encoded[i] for i in group], settings), strict=True):
                results[i] = self._generated(encoded[i], row, len(encoded[i]))
        return [results[i] for i in range(len(prompts))]

    def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        """See `Backend.choose`. Where an identifier is several tokens, each branching of their trie is asked."""
        with self._my_turn():
            return (
                self._choose_blocks(prompts, pools) if prompts and prompts[0].blocks else self._choose(prompts, pools)
            )

    def _choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        encoded = self._encoded(prompts, 1)
        tries = [self.encoder.trie(pool) for pool in pools]
        if self._prefixes and prompts and all(prompt.stays for prompt in prompts):
            logprobs, read = self._branches_behind(self._prefixes, _rows(prompts, encoded, tries), tries)
        elif self.keeps and any(trie.openings for trie in tries):
            logprobs, read = self._branches_read_once(prompts, encoded, tries)
        else:
            logprobs, read = self._branch_logprobs(encoded, tries)
        return [
            Choice(identifier_probabilities(trie, logprobs[i]), read[i], len(next(iter(trie.paths.values()))))
            for i, trie in enumerate(tries)
        ]

    def block_ids(self, prompt: Prompt) -> Blocks:
        """A prompt in layout `blocks` as token ids. Raises BackendError where the network cannot be masked so."""
        blocks.make_maskable(self.network, self.name)
        head, parts, question = self.encoder.blocks(prompt)
        longest = len(head) + max(map(len, parts)) + len(question)
        self._check_lengths([[0] * longest], 0)
        if not prompt.labels:
            return Blocks(head, parts, tuple(Question(question, (k,)) for k in range(len(parts)) if question))
        names = self.encoder.label_ids(len(parts))
        labels = tuple(names[label - 1] for label in prompt.labels)
        return Blocks(head, parts, (Question(question, tuple(range(len(parts)))),), labels)

    @torch.inference_mode()
    def judged(self, pools: Sequence[Blocks]) -> list[Tensor]:
        """For each pool one number a block (n,), higher is better; of these the policy is the softmax over any left."""
        with self._turn:
            return [said for said, _ in blocks.read_all(self.network, pools, self.encoder.yes_no(), self.max_row)]

    def _choose_blocks(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        """A judge's probabilities are of being the best; an identifier's are of what its question asks for."""
        read = [self.block_ids(prompt) for prompt in prompts]
        if not prompts[0].labels:
            parts = [b.part([k - 1 for k in pool]) for b, pool in zip(read, pools, strict=True)]
            if self.kept is not None and parts[0].questions:
                said = [self.kept.judged(part, self.encoder.yes_no(), self.max_row) for part in parts]
            else:
                said = list(zip(self.judged(parts), blocks.read_tokens(parts, self.max_row), strict=True))
            return [
                Choice(dict(zip(pool, torch.softmax(values.double(), -1).tolist(), strict=True)), n, 0)
                for pool, (values, n) in zip(pools, said, strict=True)
            ]
        before, self._known = self._known, {}
        choices = []
        for prompt, pool, of_prompt in zip(prompts, pools, read, strict=True):
            self._known[prompt], new = self._known_of(of_prompt, before.get(prompt) or self._known.get(prompt))
            logits, tokens_read = self._known[prompt].ask([k - 1 for k in pool])
            probabilities = torch.softmax(logits.double(), -1).tolist()
            choices.append(Choice(dict(zip(pool, probabilities, strict=True)), new + tokens_read, 1))
        return choices

    def _known_of(self, pool: Blocks, before: blocks.Known | None) -> tuple[blocks.Known, int]:
        """(the pool as it is known, tokens that had to be read for it now)."""
        if before is not None or self.kept is None:
            return before or blocks.Known(self.network, pool), 0
        new = self.kept.read(pool, self.max_row)
        return blocks.Known(self.network, pool, self.kept.behind(pool)), new

    def forget(self) -> None:
        """Drop what was kept of earlier prompts; needed after the weights have changed."""
        with self._turn:
            self._known = {}
            if self._prefixes:
                self._prefixes.forget()

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """One call at a time. After one that broke off, what is kept of prompts may be half of it: nothing stays."""
        with self._turn:
            try:
                yield
            except BaseException:
                self.forget()
                raise

    def _groups(self, lengths: Sequence[int], room: int) -> Iterator[list[int]]:
        """Batches of rows; without padding where that changes what the network says."""
        groups = batches(lengths, room)
        if self.pads:
            return groups
        return (
            [i for i in group if lengths[i] == length]
            for group in groups
            for length in sorted({lengths[i] for i in group})
        )

    def _branches_behind(
        self, prefixes: PrefixCache, rows: Sequence[Row], tries: Sequence[IdentifierTrie]
    ) -> tuple[list[dict[TokenPath, dict[int, float]]], list[int]]:
        """As `_branch_logprobs`, in one pass over what is new: branchings are read side by side."""
        self._check_lengths([row.ids for row in rows], 1 + max(len(row.branches) for row in rows))
        logits, computed = prefixes.next_logits(rows)
        logprobs: list[dict[TokenPath, dict[int, float]]] = [{} for _ in tries]
        for b, trie in enumerate(tries):
            place = {(): 0} | {path: n for n, path in enumerate(rows[b].branches, start=1)}
            for node, children in trie.branches.items():
                values = torch.log_softmax(logits[b, place[node], list(children)], dim=-1).tolist()
                logprobs[b][node] = dict(zip(children, values, strict=True))
        return logprobs, computed

    def _branches_read_once(
        self, prompts: Sequence[Prompt], encoded: list[list[int]], tries: list[IdentifierTrie]
    ) -> tuple[list[dict[TokenPath, dict[int, float]]], list[int]]:
        """As `_branch_logprobs`, each prompt read once for all of its branchings; nothing stays known."""
        logprobs: list[dict[TokenPath, dict[int, float]]] = [{} for _ in tries]
        read = [0] * len(tries)
        rows = _rows(prompts, encoded, tries)
        for group in self._groups([len(row.ids) + len(row.branches) for row in rows], self.max_tokens):
            prefixes = PrefixCache(self.network, self.pad_id, self.max_tokens)
            of_group = self._branches_behind(prefixes, [rows[i] for i in group], [tries[i] for i in group])
            for i, values, tokens in zip(group, *of_group, strict=True):
                logprobs[i], read[i] = values, tokens
        return logprobs, read

    def _branch_logprobs(
        self, encoded: list[list[int]], tries: list[IdentifierTrie]
    ) -> tuple[list[dict[TokenPath, dict[int, float]]], list[int]]:
        """For each prompt, log-probabilities by branching and token, and the tokens read for it."""
        nodes = [(i, node) for i, trie in enumerate(tries) for node in trie.branches]
        inputs = [encoded[i] + list(node) for i, node in nodes]
        self._check_lengths(inputs, 1)
        logprobs: list[dict[TokenPath, dict[int, float]]] = [{} for _ in tries]
        read = [0] * len(tries)
        for group in self._groups([len(ids) for ids in inputs], self.max_tokens):
            logits = self.next_logits([inputs[j] for j in group])
            for row, j in enumerate(group):
                i, node = nodes[j]
                children = tries[i].branches[node]
                values = torch.log_softmax(logits[row, list(children)], dim=-1).tolist()
                logprobs[i][node] = dict(zip(children, values, strict=True))
                read[i] += len(inputs[j])
        return logprobs, read

    @torch.inference_mode()
    def next_logits(self, rows: list[list[int]]) -> Tensor:
        """Logits (B, V) of the token after each row, in float32."""
        input_ids, mask = left_pad(rows, self.pad_id, self.network.device)
        out = self.network(
            input_ids=input_ids, attention_mask=mask, position_ids=positions(mask), logits_to_keep=1, use_cache=False
        )
        return torch.as_tensor(out.logits[:, -1]).float()

    @property
    def context(self) -> int | None:
        """Tokens that a prompt and its answer may have; None where the network does not say."""
        return getattr(self.network.config, "max_position_embeddings", None)

    def length(self, prompt: Prompt) -> int:
        """See `Encoder.length`. Of a prompt far beyond the context, as many as show that it is."""
        return self._beyond(prompt) or self.encoder.length(prompt)

    @property
    def pad_id(self) -> int:
        """The padding token; never attended to. Any will do where the tokenizer's own is none or has no embedding."""
        pad = self.encoder.tokenizer.pad_token_id
        return int(pad) if pad is not None and pad < self._rows_known else 0

    def _beyond(self, prompt: Prompt) -> int:
        return self.encoder.beyond(prompt, self.context) if self.context else 0

    def _encoded(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
        """Token ids. PromptError for a prompt far beyond the context: to encode all of it would hold up the others."""
        if any(map(self._beyond, prompts)):
            raise too_long(f"more than {self.context}", max_new_tokens, self.context or math.inf, self.name)
        return [self.encoder.encode(prompt) for prompt in prompts]

    def _settings(self, max_new_tokens: int, temperature: float, traced: bool) -> Settings:
        stopped = self._tail_stops if self._tag_is_many else None
        return Settings(max_new_tokens, temperature, tuple(sorted(self._ends)), stopped, traced)

    @torch.inference_mode()
    def _write(self, rows: Sequence[list[int]], settings: Settings) -> list[Written]:
        """By our own loop."""
        begun = [row[:-1] for row in rows]
        cache, mask_B_L = read_rows(self.network, begun, self.pad_id, self.max_tokens)
        ids_B_1 = torch.tensor([row[-1:] for row in rows], device=self.network.device)
        return write(self.network, cache, ids_B_1, torch.cat([mask_B_L, torch.ones_like(ids_B_1)], 1), settings)

    @torch.inference_mode()
    def _generate(self, rows: Sequence[list[int]], settings: Settings) -> list[Written]:
        """By the network's own `generate`: layers with a window or a state have caches of their own."""
        # Sampling settings are all explicit: a model's own generation defaults (top-k, repetition
        # penalty) would make log-probabilities in training differ from what was sampled.
        sampling: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": settings.temperature}
        if settings.temperature == 0:
            sampling = {"do_sample": False, "top_k": None, "top_p": None, "temperature": None}
        stop = {"stop_strings": [STOP], "tokenizer": self.encoder.tokenizer} if settings.stopped else {}
        input_ids, mask = left_pad(rows, self.pad_id, self.network.device)
        out = self.network.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=self.pad_id,
            eos_token_id=list(settings.stop_ids) or None,
            repetition_penalty=1.0,
            logits_processor=[_checked],
            **sampling,
            **stop,
        )
        return [Written(self._cut(row)) for row in out[:, input_ids.shape[1] :].tolist()]

    def _generated(self, prompt_ids: list[int], row: Written, computed: int) -> Generated:
        trace = Trace(torch.tensor(row.logprobs), torch.stack(row.hidden)) if row.hidden else None
        return Generated(prompt_ids, row.token_ids, not self._stopped(row.token_ids), computed, trace)

    def _cut(self, token_ids: list[int]) -> list[int]:
        """Up to and with what ended the row; what follows is padding.

        A padding token before the end was written by the model and stays, as in the pass that scores it.
        """
        ends = self._ends
        for i, token in enumerate(token_ids):
            if token in ends:
                return token_ids[: i + 1]
            if token == self.pad_id and self._stopped(token_ids[:i]):
                return token_ids[:i]
        return token_ids

    def _stopped(self, completion_ids: list[int]) -> bool:
        if completion_ids and completion_ids[-1] in self._ends:
            return True
        return STOP in self.encoder.decode(completion_ids)

    def _tail_stops(self, completion_ids: list[int]) -> bool:
        """Whether the closing tag ends in the last token, given that it did not end before."""
        return STOP in self.encoder.decode(completion_ids[-2 * len(STOP) :])

    def _check_lengths(self, rows: list[list[int]], max_new_tokens: int) -> None:
        limit = self.context or math.inf
        longest = max((len(row) for row in rows), default=0)
        if longest + max_new_tokens > limit:
            raise too_long(longest, max_new_tokens, limit, self.name)
        if rows and (highest := max(max(row, default=0) for row in rows)) >= self._rows_known:
            token = self.encoder.tokenizer.convert_ids_to_tokens(highest)
            raise PromptError(
                f"{self.name} has no embedding of {token!r}, number {highest} of the tokenizer: it has "
                f"{self._rows_known}. Take the tokenizer that the model was trained with"
            )


def _checked(ids_B_L: Tensor, scores_B_V: Tensor) -> Tensor:
    """Of transformers' own generation, a step at a time."""
    check_logits(scores_B_V.amax(-1))
    return scores_B_V


def _rows(
    prompts: Sequence[Prompt], encoded: Sequence[list[int]], tries: Sequence[IdentifierTrie] | None = None
) -> list[Row]:
    """Rows of the prefix cache, found again by owner and text; equal ones are told apart by their order."""
    seen: Counter[tuple[str, str]] = Counter()
    rows = []
    for i, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
        whose = (prompt.owner, prompt.text)
        rows.append(Row(f"{seen[whose]}:{prompt.owner}:{prompt.text}", ids, tries[i].openings if tries else ()))
        seen[whose] += 1
    return rows


def identifier_probabilities(trie: IdentifierTrie, logprobs: dict[TokenPath, dict[int, float]]) -> dict[int, float]:
    """Probability by identifier from the log-probabilities at each branching."""
    return {
        k: math.exp(sum(logprobs[path[:i]][path[i]] for i in range(len(path)) if path[:i] in trie.branches))
        for k, path in trie.paths.items()
    }
