"""One change at a time, at equal training tokens. In: a `Study`. Out: results and one table.

The reference is the base run with a share of its tokens. A variant whose settings are those of the reference is not
trained again; which level of a factor that is depends on the config, and the table says so. What layout `blocks` cannot
do (thoughts, a critic of its own network) is compared on re-listed pools.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from transformers import AutoTokenizer

from r1ranker.backends.encoding import Encoder
from r1ranker.backends.models import resolve
from r1ranker.evaluation.charts import number
from r1ranker.evaluation.results import Row
from r1ranker.evaluation.systems import model_system
from r1ranker.evaluation.table import stars
from r1ranker.experiments.report import Table, by_system, save_tables, tests_by_system
from r1ranker.experiments.study import SHORT, Study
from r1ranker.io.config import RunConfig
from r1ranker.training.demonstrations import demonstrate
from r1ranker.training.logs import read_log

REFERENCE, NO_RL, SFT_ONLY = "reference", "no-rl", "sft-only"


@dataclass(frozen=True, slots=True)
class Variant:
    """One level of a factor, and what is other than in the base run."""

    factor: str
    level: str
    overrides: tuple[str, ...]


DRAWN = ("ppo.answer=sampled", "ppo.objective=surrogate")
"""The logarithm is of the expected reward, for which all answers are credited."""
CRITIC = (*DRAWN, "layout=relist")
VARIANTS = (
    Variant("design", "direct", ("design=dranker",)),
    Variant("design", "iterative", ("design=iranker",)),
    Variant("thinking", "on", ("think=true", "layout=relist", *DRAWN)),
    Variant("thinking", "off", ("think=false",)),
    # Each layout with training states of its own: sampled pools, or whole episodes of up to 19 decisions each.
    Variant("layout", "relist", ("layout=relist", "ppo.episode_share=0.0")),
    Variant("layout", "append", ("layout=append", "ppo.episode_share=1.0", "ppo.minibatch=4")),
    Variant("layout", "blocks", ("layout=blocks", "think=false", "ppo.episode_share=0.0", "ppo.critic=head")),
    Variant("rewards", "paper", ("ppo.reward=paper",)),
    Variant("rewards", "graded", ("ppo.reward=graded",)),
    Variant("credit", "sampled", ("think=false", *DRAWN)),
    Variant("credit", "expected", ("think=false", "ppo.answer=expected")),
    Variant("lists", "sampled", ("think=false", "design=dranker", *DRAWN)),
    Variant("lists", "expected", ("think=false", "design=dranker", "ppo.answer=expected")),
    # Estimators, and with GAE where the critic's values come from, differ in how they credit what was sampled.
    Variant("critic", "head", ("ppo.critic=head", *CRITIC)),
    Variant("critic", "separate", ("ppo.critic=separate", *CRITIC)),
    Variant("estimator", "gae", ("ppo.estimator=gae", *DRAWN)),
    Variant("estimator", "grpo", ("ppo.estimator=grpo", "ppo.group=4", *DRAWN)),
    Variant("estimator", "rloo", ("ppo.estimator=rloo", "ppo.group=4", *DRAWN)),
)
SAMPLED = 256
"""Demonstrations by which the tokens of a supervised step are estimated."""


def ablations(study: Study) -> None:
    """Train every variant that differs, evaluate all on the same problems, save the table."""
    base = ("design=iranker", f"ppo.token_budget={study.budget(SHORT)}")
    sizes = (Variant("model", size, (f"model={size}",)) for size in study.size.sizes)
    overrides = {variant: [*base, *variant.overrides] for variant in (*VARIANTS, *sizes)}
    reference = study.changed(base)
    system_of: dict[Variant, str] = {}
    runs: dict[str, tuple[RunConfig, Sequence[str]]] = {REFERENCE: (reference, base)}
    for variant, changes in overrides.items():
        config = study.changed(changes)
        same = [name for name, (known, _) in runs.items() if known == config]
        system_of[variant] = same[0] if same else f"{variant.factor}-{variant.level.rpartition('/')[2]}"
        runs.setdefault(system_of[variant], (config, changes))
    models = dict(zip(runs, study.trained_all([changes for _, changes in runs.values()]), strict=True))
    supervised = _supervised(study, reference)
    systems = [
        *(model_system(name, config.design, str(models[name]), config) for name, (config, _) in runs.items()),
        study.system(NO_RL, "iranker", study.config.model),
        study.system(SFT_ONLY, "iranker", str(study.warmstarted(supervised)), *_as_taught(reference)),
    ]
    rows = study.evaluate(
        ["random", "prior", *systems],
        study.problems("test"),
        baseline=REFERENCE,
        title=f"R1-Ranker, ablations ({study.scale})",
        curves={name: read_log(model.parent) for name, model in models.items()},
        settings={"ppo": reference.model_dump(mode="json")["ppo"]},
    )
    save_tables(study.out, [_table(study, rows, system_of, _trained_tokens(models))])


def _table(study: Study, rows: Sequence[Row], system_of: Mapping[Variant, str], tokens: Mapping[str, str]) -> Table:
    fixed = [("reference", "", REFERENCE), ("training", "none", NO_RL), ("training", "supervised only", SFT_ONLY)]
    levels = [*fixed, *((variant.factor, variant.level, name) for variant, name in system_of.items())]
    tests = tests_by_system(study.out, "MRR")
    names = ("MRR", "nDCG@10", "calls", "prompt_tokens", "generated_tokens", "seconds", "broken")
    found = {measure: by_system(rows, measure) for measure in names}
    lines = []
    for factor, level, name in levels:
        mrr = found["MRR"][name]
        test = tests.get(name)
        costs = [found[measure][name].value for measure in names[2:]]
        cells = [
            f"{mrr.value:.3f} ±{(mrr.ci_high - mrr.ci_low) / 2:.3f}",
            f"{test.difference:+.3f} {stars(test)}".strip() if test else "reference",
            f"{found['nDCG@10'][name].value:.3f}",
            *map(number, costs[:-1]),
            f"{costs[-1]:.1%}",
            tokens.get(name, ""),
        ]
        lines.append((factor, level, *cells))
    columns = (
        *("factor", "level", "MRR", "against the reference", "nDCG@10"),
        *("calls", "prompt tokens", "generated tokens", "seconds", "broken", "tokens trained on"),
    )
    queries = next(row.n for row in found["MRR"].values())
    note = (
        f"Means over tasks, {queries} queries; costs per query. The reference is the base run with {SHORT:.0%} of its "
        "token budget; each line changes one thing. * p < 0.05, ** p < 0.01 (paired randomisation, Holm over all "
        "systems and tasks), ↓ worse. The supervised steps are chosen to read about as many tokens."
    )
    if study.config.layout == "blocks":
        note += " Thoughts, critics and the supervised start are of re-listed pools: hold them against layout relist."
    return Table("Ablations at equal training tokens", columns, lines, note)


def _trained_tokens(models: Mapping[str, Path]) -> dict[str, str]:
    """What each run really read; a batch is never cut, so it is a little over the budget."""
    return {name: f"{read_log(model.parent)[-1]['tokens']:,.0f}" for name, model in models.items()}


def _as_taught(reference: RunConfig) -> tuple[str, ...]:
    """How a supervised start is asked: examples are of re-listed pools where the reference's are blocks."""
    return ("layout=relist", "ask=worst") if reference.layout == "blocks" else ()


def _supervised(study: Study, reference: RunConfig) -> list[str]:
    """Overrides of a supervised start that goes on from the same model for about the same tokens.

    It teaches right removals in the layout and with the thoughts of the reference, by AdamW at the learning rate of the
    config, or of PPO where that is meant for a model from nothing.
    """
    settings = reference.warmstart
    rate = reference.ppo.actor_lr if settings.scratch else settings.lr
    changes = [
        "warmstart.scratch=null",
        "warmstart.answers=gains",
        f"warmstart.lr={rate}",
        "warmstart.pointwise=0.0",
        "warmstart.pointing=0.0",
        "warmstart.ranking_share=0.0",
        f"warmstart.think_share={float(reference.think)}",
        f"warmstart.append_share={float(reference.layout == 'append')}",
    ]
    config = study.changed(changes)
    encoder = Encoder(AutoTokenizer.from_pretrained(resolve(config.model)))
    problems, rng = study.problems("train"), random.Random("tokens of a demonstration")
    examples = [demonstrate(rng.choice(problems), encoder, config.warmstart, rng) for _ in range(SAMPLED)]
    length = fmean(len(example.prompt_ids) + len(example.target_ids) for example in examples)
    steps = max(1, round((reference.ppo.token_budget or 0) / (length * settings.batch)))
    return [*changes, f"warmstart.steps={steps}", f"warmstart.warmup={min(settings.warmup, steps // 10)}"]
