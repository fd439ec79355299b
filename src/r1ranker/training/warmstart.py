"""The supervised start: teaches the format and a weak first opinion. Next in the data flow: `ppo`.

In: training problems and a model (or the shape of one). Out: a model directory, and a log.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from r1ranker.backends.encoding import Encoder, batches
from r1ranker.backends.loading import load, pick_device, pick_dtype, set_threads
from r1ranker.backends.padding import positions
from r1ranker.errors import ConfigError, DataError, NotFiniteError
from r1ranker.io.config import RunConfig, WarmstartConfig
from r1ranker.io.progress import track
from r1ranker.problem import Problem
from r1ranker.prompts import build_prompt
from r1ranker.training.batch import align
from r1ranker.training.checkpoint import begun, save_model
from r1ranker.training.demonstrations import Demonstration, demonstrate, taught
from r1ranker.training.logs import RunLog
from r1ranker.training.memory import passes_in
from r1ranker.training.parallel import Crew, join_crew
from r1ranker.training.scratch import new_network, train_tokenizer

FLOOR = 0.05
"""Of the learning rate at the end."""
SAVE_EVERY = 500
MUON_LR_FACTOR = 5
MICRO_TOKENS = 2048
TOKENIZER_PROMPTS = 6000


def warmstart(config: RunConfig, problems: Sequence[Problem], *, overwrite: bool = False) -> Path:
    """Train and save; returns the model directory, `<out>/model`. One that is there is replaced with `overwrite`."""
    if not join_crew().leads:
        return _warmstart(config, problems)
    with begun(config.out, overwrite=overwrite):
        return _warmstart(config, problems)


def _warmstart(config: RunConfig, problems: Sequence[Problem]) -> Path:
    problems = [problem for problem in problems if len(problem.candidates) > 1]
    if not problems:
        raise DataError("the data hold no training problem to learn from")
    settings, crew = config.warmstart, join_crew()
    problems = taught(problems, settings)
    network, tokenizer = _start(config, problems)
    encoder = Encoder(tokenizer)
    _check_context(network, encoder, problems)
    # Thrown away afterwards: it only makes the hidden state at a candidate's end carry how good the candidate is.
    torch.manual_seed(config.seed)
    judge = nn.Linear(network.config.get_text_config().hidden_size, 1).to(network.device)
    optimizers = _optimizers(network, judge, settings)
    network.train()
    bar = "warm start" if crew.leads else ""
    with RunLog(config.out, writes=crew.leads) as log, track(settings.steps, bar) as advance:
        for step in range(settings.steps):
            began = time.perf_counter()
            rng = random.Random(f"warmstart:{config.seed}:{step}")
            examples = [demonstrate(rng.choice(problems), encoder, settings, rng) for _ in range(settings.batch)]
            factor = cosine(step, settings.steps, settings.warmup)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = group["base_lr"] * factor
            with _stopping(step, config):
                loss, tokens = _update(network, judge, examples, optimizers, tokenizer.pad_token_id, config, crew)
            if step % settings.log_every == 0 or step == settings.steps - 1:
                seconds = time.perf_counter() - began
                log.write(step, {"loss": loss, "tokens_per_s": tokens / seconds, "lr": settings.lr * factor})
            if crew.leads and ((step + 1) % SAVE_EVERY == 0 or step == settings.steps - 1):
                dtype = pick_dtype(config.dtype, network.device, network)
                with _stopping(step, config):
                    save_model(config.out / "model", network, tokenizer, dtype)
            advance(1)
    crew.wait()
    return config.out / "model"


@contextmanager
def _stopping(step: int, config: RunConfig) -> Iterator[None]:
    """What is said where a step meets a number that is none."""
    try:
        yield
    except NotFiniteError as error:
        saved = step // SAVE_EVERY * SAVE_EVERY
        kept = f"{config.out / 'model'} stays that of step {saved}" if saved else "nothing was saved yet"
        raise NotFiniteError(
            f"the warm start stopped at step {step}: {error}; {kept}. Lower warmstart.lr (now {config.warmstart.lr:g}) "
            "or raise warmstart.warmup, and start anew"
        ) from error


def cosine(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate: linear rise over `warmup` steps, then half a cosine down to `FLOOR`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _start(config: RunConfig, problems: Sequence[Problem]) -> tuple[Any, Any]:
    scratch = config.warmstart.scratch
    if scratch is None:
        return load(config.model, config.device, "float32", config.threads)
    rng = random.Random(config.seed)
    chosen = rng.sample(list(problems), min(len(problems), TOKENIZER_PROMPTS))
    tokenizer = train_tokenizer((_text(problem) for problem in chosen), scratch)
    network = new_network(tokenizer, scratch, config.seed)
    device = pick_device(config.device)
    set_threads(network, device, config.threads)
    return network.to(device), tokenizer


def _check_context(network: Any, encoder: Encoder, problems: Sequence[Problem]) -> None:
    """ConfigError where a model could read no prompt of a whole pool, which nobody would see before it ranks."""
    context = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    tokens = len(encoder.encode_text(max(map(_text, problems), key=len)))
    if context and tokens > context:
        raise ConfigError(
            f"a prompt has {tokens} tokens, and the model reads {context}: raise "
            "warmstart.scratch.context, take another model, or make the pools smaller"
        )


def _text(problem: Problem) -> str:
    prompt = build_prompt(problem, problem.identifiers, "iranker", think=False)
    return f"{prompt.text}\n{prompt.prefill} fits least fits best > </answer>"


def _optimizers(network: Any, judge: nn.Linear, settings: WarmstartConfig) -> list[torch.optim.Optimizer]:
    """AdamW; for a model from nothing, Muon on its inner matrices, which learns in about two thirds of the steps."""
    matrices = [p for name, p in network.named_parameters() if p.ndim == 2 and "embed" not in name]
    if settings.scratch is None:
        matrices = []
    inner = {id(p) for p in matrices}
    others = [p for p in [*network.parameters(), *judge.parameters()] if id(p) not in inner]
    adam = torch.optim.AdamW([{"params": others, "base_lr": settings.lr}], betas=(0.9, 0.95), weight_decay=0.01)
    if not matrices:
        return [adam]
    muon = torch.optim.Muon([{"params": matrices, "base_lr": MUON_LR_FACTOR * settings.lr}], weight_decay=0.01)
    return [adam, muon]


def _update(
    network: Any,
    judge: nn.Linear,
    examples: list[Demonstration],
    optimizers: Sequence[Any],
    pad_id: int,
    config: RunConfig,
    crew: Crew,
) -> tuple[float, int]:
    """One optimizer step over the examples, each process its share; (mean loss per target token, tokens read)."""
    settings, dtype = config.warmstart, pick_dtype(config.dtype, network.device, network)
    read = sum(len(e.prompt_ids) + len(e.target_ids) for e in examples)
    targets = sum(len(e.target_ids) for e in examples)
    candidates = max(1, sum(len(e.ends) for e in examples))
    total = 0.0
    own = crew.share(examples)
    for group in batches([len(e.prompt_ids) + len(e.target_ids) for e in own], MICRO_TOKENS):
        with passes_in(dtype, network.device):
            answer, judged = _losses(network, judge, [own[i] for i in group], pad_id, settings)
        (answer / targets + settings.pointwise * judged / candidates).backward()
        total += float(answer.detach()) / targets
    parameters = [*network.parameters(), *judge.parameters()]
    crew.add_gradients(parameters, 1.0)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    if not math.isfinite(norm):
        raise NotFiniteError(f"the gradient is not finite (loss {total:.3g})")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return crew.total(total)[0], read


def _losses(
    network: Any, judge: nn.Linear, examples: list[Demonstration], pad_id: int, settings: WarmstartConfig
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropies: of the target tokens (soft where there are alternatives), of candidates at their ends."""
    input_ids, mask, P = align([(e.prompt_ids, e.target_ids) for e in examples], pad_id)
    T = input_ids.shape[1] - P
    targets: list[tuple[int, int, int, float]] = []
    ends: list[tuple[int, int, int, float]] = []
    for row, example in enumerate(examples):
        begin = P - len(example.prompt_ids)
        for t, token in enumerate(example.target_ids):
            spread = example.alternatives.get(t, {token: 1.0})
            targets += [(row, t, token_, weight) for token_, weight in spread.items()]
        ends += [(row, begin + position, name, gain) for position, name, gain in example.ends]
    mask = mask.to(network.device)
    out = network.base_model(
        input_ids=input_ids.to(network.device),
        attention_mask=mask,
        position_ids=positions(mask),
        use_cache=False,
        output_hidden_states=True,
    )
    hidden_B_L_H = out.last_hidden_state
    head = network.get_output_embeddings()
    logits_B_T_V = head(hidden_B_L_H[:, -T - 1 : -1]).float()
    # Where an identifier is chosen, it is chosen among those of the pool.
    barred_B_T_V = torch.zeros_like(logits_B_T_V)
    for row, example in enumerate(examples):
        for t, tokens in example.allowed.items():
            barred_B_T_V[row, t] = -torch.inf
            barred_B_T_V[row, t, list(tokens)] = 0.0
    rows, ts, chosen, weights = (torch.tensor(column, device=mask.device) for column in zip(*targets, strict=True))
    answer = -(torch.log_softmax(logits_B_T_V + barred_B_T_V, dim=-1)[rows, ts, chosen] * weights).sum()
    if not ends:
        return answer, torch.zeros((), device=mask.device)
    rows, places, names, gains = (torch.tensor(column, device=mask.device) for column in zip(*ends, strict=True))
    # What only the last layer's output holds, no attention can carry to where the answer is given.
    before_B_L_H = out.hidden_states[-2]
    at_ends = (network.base_model.norm(before_B_L_H) if settings.pointing else hidden_B_L_H)[rows, places]
    judged = F.binary_cross_entropy_with_logits(judge(at_ends.float()).squeeze(-1), gains, reduction="sum")
    # Whoever looks for the worst line has to read its identifier there, far behind where it was written.
    judged = judged + F.cross_entropy(head(at_ends).float(), names, reduction="sum")
    if not settings.pointing:
        return answer, judged
    deciding = torch.tensor([P + example.deciding - 1 for example in examples], device=mask.device)
    wanted = torch.where(torch.tensor([e.ranks for e in examples], device=mask.device)[rows], gains, 1 - gains)
    readers, read = (rows, deciding[rows]), (rows, places)
    scores = attention_scores(network, before_B_L_H, positions(mask), readers, read).float() + judge.bias
    pointed = F.binary_cross_entropy_with_logits(scores, wanted[:, None].expand_as(scores), reduction="sum")
    return answer, judged + settings.pointing * pointed / scores.shape[1]


def attention_scores(
    network: Any,
    before_B_L_H: Tensor,
    position_ids: Tensor,
    readers: tuple[Tensor, Tensor],
    read: tuple[Tensor, Tensor],
) -> Tensor:
    """(pairs, heads): how strongly the last layer attends from each reader (row, column) to what it is paired with."""
    layer = network.base_model.layers[-1]
    attention, x = layer.self_attn, layer.input_layernorm(before_B_L_H)
    cos, sin = network.base_model.rotary_emb(x, position_ids)
    turned = []
    for project, places in ((attention.q_proj, readers), (attention.k_proj, read)):
        heads = project(x[places]).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)[None]
        turned.append(apply_rotary_pos_emb(heads, heads, cos[places][None], sin[places][None])[0][0])
    scores: Tensor = (turned[0] * turned[1]).sum(-1).T * attention.head_dim**-0.5
    return scores
