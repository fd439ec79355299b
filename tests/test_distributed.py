"""Ranking on a real cluster of two machines on this one, of which one is lost on the way."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from r1ranker.errors import BackendError
from r1ranker.io.problems import PROBLEM
from r1ranker.io.runs import RANKING
from r1ranker.problem import Problem
from r1ranker.ranking import distributed
from r1ranker.ranking.distributed import RankBlock, absolute, rank_each_on_ray
from r1ranker.ranking.spec import RankerSpec

MakeProblem = Callable[..., Problem]
MEGABYTES = 2**20


def test_without_ray_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"pip install 'r1-ranker\[ray\]'"):
        list(rank_each_on_ray([], RankerSpec(), "local"))


def test_files_are_named_so_that_actors_find_them_and_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "nano", "random"):
        Path(name).mkdir()
    files = {"thoughts": "kept.jsonl", "prices": Path("prices.yaml"), "cache": Path("cache")}
    found = absolute(RankerSpec(model="mine", recall="mine", **files))  # type: ignore[arg-type]
    assert found.model == found.recall == str(tmp_path / "mine")
    assert found.thoughts == str(tmp_path / "kept.jsonl")
    assert (found.prices, found.cache) == (tmp_path / "prices.yaml", tmp_path / "cache")
    for spec in (RankerSpec(recall="random"), RankerSpec(model="org/model", recall="org/encoder")):
        assert absolute(spec) == spec


def test_an_actor_hands_over_a_long_ranking_in_less_room_than_its_steps_written_out(make_problem: MakeProblem) -> None:
    spec, problem = RankerSpec(model="nano", layout="blocks"), make_problem(100)
    (row,) = RankBlock(spec)(pa.table({"place": [7], "problem": [PROBLEM.dump_json(problem)]})).to_pylist()
    assert row["place"] == 7 and not row["error"]
    ranking, here = pickle.loads(row["ranking"]), spec.build().rank(problem)
    assert ranking.docids == here.docids and ranking.steps == here.steps
    assert 8 * len(row["ranking"]) < len(RANKING.dump_json(here))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and one more machine, of two processors each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    machine = {"num_cpus": 2, "object_store_memory": 80 * MEGABYTES}
    made = Cluster(initialize_head=True, head_node_args=machine | {"include_dashboard": False})
    made.other = made.add_node(**machine)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.filterwarnings("default")  # Ray's own
def test_a_lost_machine_loses_and_doubles_nothing(
    cluster: Any, tiny_dir: Path, make_problem: MakeProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, lost = tmp_path / "log", str(cluster.other.node_id)

    class Slow(distributed.RankBlock):
        """Notes where it works, and takes longer on the machine that will be lost, so that it is lost at work."""

        def __call__(self, table: pa.Table) -> pa.Table:
            import ray

            node = ray.get_runtime_context().get_node_id()
            with log.open("a") as lines:
                lines.write(f"{node}\n")
            time.sleep(2 if node == lost else 0.1)
            return super().__call__(table)

    monkeypatch.setattr(distributed, "RankBlock", Slow)
    problems = [make_problem(2 + i % 9, qid=f"q{i}") for i in range(120)]
    spec = RankerSpec(model=str(tiny_dir), device="cpu", batch_size=2, concurrency=1)
    expected = spec.build().rank_many(problems)
    found = []
    for place, ranking in rank_each_on_ray(iter(problems), spec, cluster.address):
        if cluster.other and lost in log.read_text():
            cluster.remove_node(cluster.other, allow_graceful=False)
            cluster.other = None
        found.append((place, ranking))
    worked = log.read_text().split()
    assert worked.count(lost) >= 1
    assert len(worked) > len(problems) / 2, "no block was under way on the machine when it was lost"
    found.sort(key=lambda entry: entry[0])
    assert [place for place, _ in found] == list(range(len(problems)))
    for (_, ranking), alone in zip(found, expected, strict=True):
        assert (ranking.qid, ranking.docids, ranking.scores) == (alone.qid, alone.docids, alone.scores)
        assert [step.completion for step in ranking.steps] == [step.completion for step in alone.steps]


@pytest.mark.filterwarnings("default")
def test_a_model_that_cannot_be_loaded_there_is_named(cluster: Any, make_problem: MakeProblem) -> None:
    with pytest.raises(BackendError, match=r"^no model directory at \./gone"):
        list(rank_each_on_ray([make_problem(3)], RankerSpec(model="./gone"), cluster.address))
