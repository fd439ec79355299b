"""How large `r1ranker reproduce` is: the scales by name. A scale is a config, `reproduce-NAME.yaml`, and a line here.

The config says what is trained on what; a `Scale` says how much of it each experiment takes. To add one: write the
YAML in `configs` and name it in `SCALES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TAUGHT_ALOUD = ("warmstart.steps=300", "warmstart.batch=16", "warmstart.lr=0.0005", "ppo.actor_lr=0.00005")
"""With a third of these steps most answers of a small model are still broken; the rate at which it learns to answer
ruins its thoughts within two."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What the experiments take at one scale; the defaults are those of a user's own YAML.

    about: in words, for the command's help. limits: test problems per task by experiment; absent is all.
    deep: queries of a benchmark of which the top 100 is reranked; None is all. sizes: models that ablations train
    beside the config's. aloud: training problems of each task that are ranked aloud. taught_aloud: settings under
    which a model that answers without thoughts learns to write them, and then by rewards.
    public: general tasks are the paper's, from their public sources; else they are made of the run's own passages.
    """

    about: str = "your own"
    limits: Mapping[str, int] = field(default_factory=dict)
    deep: int | None = None
    sizes: tuple[str, ...] = ()
    aloud: int = 300
    taught_aloud: tuple[str, ...] = TAUGHT_ALOUD
    public: bool = True


SCALES: dict[str, Scale] = {
    "mini": Scale(
        "embedded, two cores",
        limits={"ablations": 40, "thoughts": 40, "zero-shot": 60},
        deep=40,
        aloud=30,
        public=False,
    ),
    "small": Scale("seconds, a test", taught_aloud=("warmstart.steps=10", *TAUGHT_ALOUD[1:]), public=False),
    "smol": Scale(
        "public data, smol-base, a laptop core",
        limits={
            **{"main": 100, "zero-shot": 40, "ablations": 20, "specialists": 60},
            **{"thoughts": 10, "general": 60, "ir": 50, "unseen": 100, "routing": 100, "recommendation": 60},
        },
        deep=50,
        aloud=10,
        # All weights of a pretrained model move here, so slowly and not for long.
        taught_aloud=("warmstart.steps=60", "warmstart.batch=8", "warmstart.lr=0.00003", "ppo.actor_lr=0.0005"),
        public=False,
    ),
    "paper": Scale(
        "public data, GPUs",
        sizes=("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    ),
}
