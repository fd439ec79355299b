"""What was read of candidates, kept for every query: their keys and values, where the query stands last.

In: pools of layout `blocks` whose blocks do not see the query. Out: their keys and values, computed once for each head
and text and found again by their token ids, in memory or in a safetensors file that is memory-mapped. Used by
`transformers_`; `ranking.store` says which model a file is of.

    kept = Kept(network)
    kept.read(pool, max_tokens=2048)     # tokens that were not known yet: at first all, then none
    kept.behind(pool)                    # a cache; what is asked behind it sees what it would have seen

A block begins where its head ends, whatever stands beside it, so what was computed in one pool is right in any.

Names carry their dimensions: L tokens, N layers, H heads of keys, D their size, E entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import DynamicCache

from r1ranker.backends.blocks import Blocks, Ids, ask_behind, by_judge, by_place, read_cached, separate

NOTHING: Ids = ()
"""A head stands in the store as an entry of its own: behind itself, with no block."""


class Kept:
    """Keys and values by (head, block) of one network. `chunks` are (L, N, 2, H, D); an entry is a part of one."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.added = 0
        self._chunks: list[Tensor] = []
        self._places: dict[tuple[Ids, Ids], tuple[int, int, int]] = {}

    def __len__(self) -> int:
        """Candidates that are known, once for each head they were read behind."""
        return sum(1 for _, block in self._places if block)

    @property
    def bytes(self) -> int:
        """Size of all keys and values."""
        return sum(chunk.nbytes for chunk in self._chunks)

    @torch.inference_mode()
    def read(self, pool: Blocks, max_tokens: int) -> int:
        """Compute what is missing of a pool, in passes of at most `max_tokens`; tokens that were read."""
        missing = tuple(b for b in dict.fromkeys(pool.blocks) if (pool.head, b) not in self._places)
        if not missing:
            return 0
        read = 0
        for _, part in separate(Blocks(pool.head, missing), max_tokens):
            cache, tokens = read_cached(self.network, part)
            self._add(part, _chunk(cache))
            read += tokens
        return read

    def behind(self, pool: Blocks) -> DynamicCache:
        """The keys and values of the pool's head and blocks, all of which are known, in the order of `packed`."""
        entries = [(pool.head, NOTHING), *((pool.head, block) for block in pool.blocks)]
        places = [self._places[entry] for entry in entries]
        known = torch.cat([self._chunks[chunk][begin:end] for chunk, begin, end in places])
        known_N_2_H_L_D = known.to(self.network.device).permute(1, 2, 3, 0, 4)
        cache = DynamicCache(config=self.network.config)
        for n, (keys_H_L_D, values_H_L_D) in enumerate(known_N_2_H_L_D):
            cache.update(keys_H_L_D[None], values_H_L_D[None], n)
        return cache

    @torch.inference_mode()
    def judged(self, pool: Blocks, yes_no: tuple[int, int], max_tokens: int) -> tuple[Tensor, int]:
        """(what a judge says of each block behind its question (n,), tokens read). See `blocks.read_all`."""
        read = self.read(pool, max_tokens)
        parts = list(separate(pool, max_tokens))
        hidden_S_H = torch.cat([ask_behind(self.network, part, self.behind(part)) for _, part in parts])
        hidden_S_H = by_place(hidden_S_H, [place for places, _ in parts for place in places])
        said = by_judge(self.network, hidden_S_H, yes_no)
        return said, read + sum(len(question.ids) for question in pool.questions)

    def _add(self, part: Blocks, chunk: Tensor) -> None:
        begin = 0
        for entry in ((part.head, NOTHING), *((part.head, block) for block in part.blocks)):
            end = begin + len(entry[1] or entry[0])
            if entry not in self._places:
                self._places[entry] = len(self._chunks), begin, end
                self.added += 1
            begin = end
        self._chunks.append(chunk)

    def write(self, path: Path, said: Mapping[str, str]) -> None:
        """All entries as one file; chunks as they are: a catalogue has gigabytes. said: see `said_of`."""
        order = {entry: n for n, entry in enumerate(self._places)}
        ids = [token for head, block in order for token in block or head]
        tensors = {f"known.{n}": chunk for n, chunk in enumerate(self._chunks)} | {
            "ids": torch.tensor(ids, dtype=torch.int32),
            "places": torch.tensor(list(self._places.values()), dtype=torch.int32),
            # The entry that is its head; a head names itself.
            "heads": torch.tensor([order[head, NOTHING] for head, _ in order], dtype=torch.int32),
        }
        save_file(tensors, path, dict(said))

    def map(self, path: Path) -> None:
        """Take the entries of a file, whose keys and values stay on disk until they are asked for."""
        with safe_open(path, framework="pt") as file:
            ids, heads, places = (file.get_tensor(name) for name in ("ids", "heads", "places"))
            chunks = [file.get_tensor(f"known.{n}") for n in range(int(places[:, 0].max()) + 1)]
        lengths = places[:, 2] - places[:, 1]
        pieces = [tuple(part.tolist()) for part in ids.split(lengths.tolist())]
        for piece, of_head, (chunk, begin, end) in zip(pieces, heads.tolist(), places.tolist(), strict=True):
            head = pieces[of_head]
            entry = (head, NOTHING) if of_head == len(self._places) else (head, piece)
            self._places[entry] = len(self._chunks) + chunk, begin, end
        self._chunks += chunks


def said_of(path: Path) -> dict[str, str]:
    """What a file says of whose it is. Raises SafetensorError or OSError for what is no such file."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _chunk(cache: DynamicCache) -> Tensor:
    """(L, N, 2, H, D) of a cache of one row."""
    known_N_2_H_L_D = torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers])
    return known_N_2_H_L_D.permute(3, 0, 1, 2, 4).contiguous().cpu()
