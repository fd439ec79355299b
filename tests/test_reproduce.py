"""The paper's tables: one command, killed and gone on with, nothing done twice, everything rendered from files."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from fault_server import FaultServer
from r1ranker.baselines.notes import load_splits
from r1ranker.cli import reproduce as command
from r1ranker.cli.reproduce import reproduce
from r1ranker.errors import ConfigError, DataError
from r1ranker.evaluation.results import COSTS, read_results
from r1ranker.evaluation.systems import ModelSystem, read_per_query
from r1ranker.experiments import EXPERIMENTS, ablations, main, report, sanity, study, zero_shot
from r1ranker.experiments.study import Study
from r1ranker.io.config import DataConfig, RunConfig, load_config
from r1ranker.io.problems import read_jsonl, write_jsonl
from r1ranker.problem import Problem, Ranking
from r1ranker.ranking.spec import RankerSpec

MakeProblem = Callable[..., Problem]
RUN = "import typer; from r1ranker.cli.reproduce import reproduce; typer.run(reproduce)"
APP = typer.Typer()
APP.command()(reproduce)


def packaged(scale: str, *overrides: str) -> RunConfig:
    return load_config(Path(str(files("r1ranker") / "configs" / f"reproduce-{scale}.yaml")), overrides)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(APP, [str(a) for a in arguments], env={"COLUMNS": "200"})


def succeed(*arguments: object) -> None:
    result = call(*arguments)
    assert result.exit_code == 0, result.output


def parsed(path: Path) -> Any:
    return json.loads(path.read_text())


def outcome(out: Path) -> dict[str, Any]:
    """All that must not depend on how often a run was killed: models, rankings, measures, tables; no seconds."""
    rows = [row for row in read_results(out / "main" / "results.json") if row.measure not in COSTS]
    tables = [table for folder in ("main", "main/sanity") for table in parsed(out / folder / "tables.json")]
    weights = {path.parents[1].name: path.read_bytes() for path in out.glob("models/*/model/model.safetensors")}
    runs = {path.name: path.read_bytes() for path in out.glob("rankings/*.trec")}
    return {"rows": rows, "tables": [t for t in tables if t["title"] != "Cost"], "weights": weights, "runs": runs}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main table at scale small, made without interruption."""
    out = tmp_path_factory.mktemp("finished")
    succeed("main", "--scale", "small", "--out", out, "--json", out / "result.json")
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The same folder elsewhere."""
    shutil.copytree(finished, tmp_path / "elsewhere" / "copy")
    return tmp_path / "elsewhere" / "copy"


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails whatever trains or evaluates."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done before, and done again")

    for name in ("train_or_resume", "evaluate_systems"):
        monkeypatch.setattr(study, name, refuse)


def at(out: Path, name: str, *overrides: str, scale: str = "small") -> Study:
    """An experiment beside those in `out`, from the model that they began with."""
    config = load_config(out / "config.yaml", overrides)
    return Study(name, scale, config, out / name, out / "models", None)


def test_the_main_table_has_every_system_and_says_where_it_comes_from(finished: Path) -> None:
    rows = read_results(finished / "main" / "results.json")
    systems = {"random", "prior", "bm25", "base-direct", "base-iterative", "dranker", "iranker"}
    assert {row.system for row in rows} == systems
    assert len({row.task for row in rows}) == 10
    text = (finished / "results.md").read_text()
    value = next(row.value for row in rows if (row.task, row.system, row.measure) == ("average", "iranker", "MRR"))
    assert re.search(rf"\| average \|.*{value:.3f}", text)
    origin = parsed(finished / "main" / "provenance.json")
    assert origin["versions"]["torch"] in text and "seed 0" in text and "scale small" in text
    assert "[page](main/report.html)" in text and str(finished) not in text
    assert parsed(finished / "result.json")["done"] == ["main"]


def test_where_other_rankers_are_read_what_they_give_together_stands_in_the_main_table(
    finished: Path, copy: Path
) -> None:
    pytest.importorskip("lightgbm")
    study = at(copy, "main", "data.0.show=[prior,bm25]")
    main.main(study)
    assert "lambdamart" in {row.system for row in read_results(study.out / "results.json")}
    assert "lambdamart" not in {row.system for row in read_results(finished / "main" / "results.json")}


def test_what_is_trained_differs_from_what_it_began_with(finished: Path) -> None:
    weights = outcome(finished)["weights"]
    assert len(weights) == len(set(weights.values())) == 3
    assert len(list(finished.glob("models/*/done.json"))) == 3
    assert not list(finished.glob("models/*/checkpoint-*.pt"))  # as large as several models, and of no more use


def test_a_run_killed_in_training_and_in_ranking_goes_on_to_the_same_results(finished: Path, tmp_path: Path) -> None:
    arguments = ["main", "--scale", "small", "--out", str(tmp_path / "out")]
    command, environment = [sys.executable, "-c", RUN, *arguments], os.environ | {"OMP_NUM_THREADS": "1"}
    for trigger in ("models/*ranker-*/checkpoint-*.pt", "rankings/*.trec"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        while not any(path.stat().st_size for path in (tmp_path / "out").glob(trigger)):
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out" / "results.md").exists()
    succeed(*arguments)
    assert outcome(tmp_path / "out") == outcome(finished)


def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\n"
        "def live(beat):\n    while True:\n        Path(beat).write_text(str(time.time()))\n        time.sleep(0.02)\n"
        "if __name__ == '__main__':\n    from r1ranker.experiments.quickstart import worker_pool\n"
        "    with worker_pool(1) as pool:\n        pool.submit(live, sys.argv[1]).result()\n"
    )
    process = subprocess.Popen([sys.executable, str(script), str(beat)])
    while not beat.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        before = beat.stat().st_mtime_ns
        time.sleep(0.5)
        if beat.stat().st_mtime_ns == before:
            return
    raise AssertionError("the process went on without its parent")


def test_what_is_done_is_found_done_even_where_the_folder_was_moved(copy: Path, no_work: None) -> None:
    (copy / "results.md").unlink()
    succeed("main", "--scale", "small", "--out", copy)
    assert (copy / "results.md").read_text().startswith("# Results in `copy`")


def test_a_model_is_trained_anew_for_other_settings_only(finished: Path, no_work: None) -> None:
    experiment = at(finished, "other")
    assert experiment.trained(["design=iranker"]) == experiment.trained(["design=iranker", "ppo.kl=0.001"])
    for change in ("ppo.kl=0.002", "seed=1", "data.0.seed=1"):
        with pytest.raises(AssertionError, match="done again"):
            experiment.trained(["design=iranker", change])


def test_data_and_weights_that_changed_where_they_lie_are_others(
    tiny_dir: Path, tmp_path: Path, make_problem: MakeProblem
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dir, model)
    overrides = ["data.0.source=jsonl", f"data.0.path={tmp_path}", f"model={model}", "ppo.token_budget=9"]
    config = load_config(None, overrides)
    one = Study("x", "mini", config, tmp_path / "out" / "x", tmp_path / "out" / "models", None)

    def names() -> tuple[str, str]:
        study._loaded.cache_clear()
        study._digest_of_problems.cache_clear()
        return one._placed(config).out.name, one._spec_digest(one.system("s", "iranker", str(model)).spec)

    write_jsonl([make_problem(3, qid="q1")], tmp_path / "train.jsonl")
    first = names()
    assert names() == first
    write_jsonl([make_problem(3, qid="q2")], tmp_path / "train.jsonl")
    other_data = names()
    assert other_data[0] != first[0] and other_data[1] == first[1]
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    assert names()[0] != other_data[0] and names()[1] != first[1]


def test_queries_that_failed_are_asked_again(tmp_path: Path, make_problem: MakeProblem) -> None:
    """As many systems as there are, and without a token budget: nothing is trained."""
    one = Study("x", "mini", RunConfig(), tmp_path / "x", tmp_path / "models", None)
    problems = [make_problem(4, qid=f"q{n}") for n in range(3)]
    with FaultServer(refuse=400) as broken, FaultServer() as sound:
        for server, fails in ((broken, True), (sound, False)):
            specs = [RankerSpec(design="iranker", model=name, base_urls=(server.base_url,)) for name in ("m", "n")]
            ranked = one.rankings([ModelSystem(spec.model, spec) for spec in specs], problems)
            assert all(bool(ranking.error) == fails for of_system in ranked.values() for ranking in of_system)


def test_results_are_made_anew_for_other_systems_problems_or_settings(copy: Path, no_work: None) -> None:
    experiment = at(copy, "main")
    iterative = experiment.system("base-iterative", "iranker", experiment.config.model)
    problems = experiment.problems("test")
    with pytest.raises(AssertionError, match="done again"):
        experiment.evaluate(["random", "prior", iterative], problems)
    with pytest.raises(ConfigError, match="did you mean 'layout'"):
        experiment.system("x", "iranker", "nano", "layuot=append")


def test_a_part_is_skipped_only_while_its_stamp_fits(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = at(copy, "baselines")
    problems = experiment.problems("test")
    first = experiment.evaluate(["random", "prior"], problems, part="two", baseline="random")
    made: list[Path] = []
    real = study.evaluate_systems
    monkeypatch.setattr(study, "evaluate_systems", lambda *a, **k: made.append(k["out"]) or real(*a, **k))
    assert experiment.evaluate(["random", "prior"], problems, part="two", baseline="random") == first
    assert made == []
    experiment.evaluate(["random", "prior"], problems, part="two", baseline="prior")
    experiment.evaluate(["random", "prior"], problems[1:], part="two", baseline="prior")
    (copy / "baselines" / "two" / study.STAMP).unlink()  # as if it had been killed before the end
    experiment.evaluate(["random", "prior"], problems[1:], part="two", baseline="prior")
    assert made == [copy / "baselines" / "two"] * 3


@pytest.mark.parametrize(("given", "seed"), [([], 3), (["--seed", "1"], 1), (["-s", "seed=2"], 2)])
def test_the_seed_is_the_configs_unless_another_is_given(
    given: list[str], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("seed: 3\ndata: [{source: mini}]\n")
    seen: list[tuple[int, str]] = []
    monkeypatch.setattr(command, "run", lambda names, scale, config, out, *_: seen.append((config.seed, out.name)))
    call("main", "--config", "mine.yaml", *given)
    assert seen == [(seed, f"mine-seed{seed}")]


def test_the_limit_is_of_test_problems_and_per_task(finished: Path) -> None:
    whole = at(finished, "whole")
    limited = Study("few", "small", whole.config, whole.out, whole.models, 1)
    assert len(whole.problems("test")) == 18 and len(limited.problems("test")) == 9
    assert limited.problems("train") == whole.problems("train")


def test_zero_shot_models_never_see_the_scenario_they_are_tested_on(copy: Path) -> None:
    # A base run that rewards one scenario alone has a say in neither: the experiment leaves scenarios out itself.
    succeed("zero-shot", "--scale", "small", "--out", copy, "-s", 'ppo.scenarios=["recommendation"]')
    values = read_per_query(copy / "zero-shot")
    assert values.keys() == {"untrained", "zero-shot", "full", "random", "prior"}
    assert all(len(tasks) == 9 for tasks in values.values())
    folders = {folder.name.rsplit("-", 1)[0]: folder for folder in (copy / "data").iterdir()}
    assert folders.keys() == {"without-recommendation", "without-routing", "without-passage"}
    for name, folder in folders.items():
        held = {p.scenario for split in ("train", "dev") for p in read_jsonl(folder / f"{split}.jsonl")}
        assert len(held) == 2 and name.removeprefix("without-") not in held
    used = [parsed(path)["data"][0]["path"] for path in copy.glob("models/*/done.json")]
    for folder in folders.values():  # a supervised start and a trained model
        assert used.count(str(folder)) == 2
    text = " ".join((copy / "results.md").read_text().split())
    assert "The supervised start, tokenizer included, leaves the scenario out too" in text
    assert text.index("## main") < text.index("## zero-shot")


def test_zero_shot_keeps_users_of_two_sources_apart_who_have_one_name(
    make_problem: MakeProblem, tmp_path: Path
) -> None:
    data = []
    for task, sides in (("movies", ("train", "dev", "test")), ("music", ("dev", "train", "test"))):
        (tmp_path / task).mkdir()
        for user, side in enumerate(sides):
            problem = make_problem(task=task, qid=f"{task}:{user}", group=f"u{user}", scenario="recommendation")
            write_jsonl([problem], tmp_path / task / f"{side}.jsonl")
        data.append({"source": "jsonl", "path": str(tmp_path / task)})
    config = RunConfig.model_validate({"model": "nano", "data": data})
    of_both = Study("zero-shot", "small", config, tmp_path / "out", tmp_path / "models", None)
    override = zero_shot._data_without(of_both, "passage")
    left = load_splits([DataConfig.model_validate(each) for each in json.loads(override.removeprefix("data="))])
    assert {p.qid for p in left["train"]} == {"movies:0", "music:1"}


def test_ablations_train_what_differs_and_name_what_does_not(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [v for v in ablations.VARIANTS if (v.factor, v.level) in {("rewards", "graded"), ("credit", "sampled")}]
    few += [v for v in ablations.VARIANTS if (v.factor, v.level) == ("estimator", "gae")]
    monkeypatch.setattr(ablations, "VARIANTS", tuple(few))
    before = set(copy.glob("models/iranker-*"))
    succeed("ablations", "--scale", "small", "--out", copy)
    assert len(set(copy.glob("models/iranker-*")) - before) == 2  # the reference, and sampled credit
    (table,) = parsed(copy / "ablations" / "tables.json")
    lines = {(line[0], line[1]): line[2:] for line in table["rows"]}
    assert lines["rewards", "graded"] == lines["reference", ""]
    assert lines["estimator", "gae"] == lines["credit", "sampled"]
    assert lines["training", "supervised only"][0] != lines["training", "none"][0]
    assert set(read_per_query(copy / "ablations")) >= {"reference", "no-rl", "sft-only", "credit-sampled"}


def test_every_listed_variant_is_a_valid_run_at_every_scale() -> None:
    for scale in command.SCALES:
        for variant in ablations.VARIANTS:
            config = packaged(scale, "design=iranker", *variant.overrides)
            assert config.ppo.token_budget, scale


def test_mini_is_the_papers_loop_on_what_the_quickstart_trains_on() -> None:
    mini = packaged("mini")
    quickstart = load_config(Path(str(files("r1ranker") / "configs" / "quickstart.yaml")))
    assert (mini.layout, mini.ask) == ("relist", "worst")
    assert (mini.model, mini.think, mini.data) == (quickstart.model, quickstart.think, quickstart.data)
    alike = ("answer", "reward", "largest_pool", "episode_share", "schedule", "entropy")
    assert [getattr(mini.ppo, name) for name in alike] == [getattr(quickstart.ppo, name) for name in alike]


def test_chance_is_the_mean_over_all_orders(make_problem: MakeProblem) -> None:
    for n, relevant in [(5, 1), (5, 2), (4, 3), (3, 3)]:
        problem = make_problem(n, gains={f"d{k}": 1 for k in range(1, relevant + 1)})
        ranks = [min(order.index(k) for k in range(relevant)) + 1 for order in itertools.permutations(range(n))]
        assert sanity.chance(problem) == pytest.approx(fmean(1 / rank for rank in ranks))
    assert sanity.chance(make_problem(20)) == pytest.approx(0.1799, abs=1e-4)
    assert sanity.chance(make_problem(3, gains={})) == 0.0


def test_labels_that_their_place_gives_away_and_leaked_queries_are_shown(make_problem: MakeProblem) -> None:
    test = [make_problem(4, positive=1, qid=f"t{i}") for i in range(6)]
    train = [make_problem(4, qid="other", query=test[0].query), make_problem(4, qid="another")]
    table = sanity.label_table(test, train)
    (line,) = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert (line["as listed"], line["reversed"], line["leaked"]) == ("1.000", "0.250", "1")
    assert (line["best tied"], line["equal pairs"]) == ("0%", "50%")


def test_a_query_for_which_nothing_was_found_counts_0_in_the_table_of_labels(make_problem: MakeProblem) -> None:
    empty = replace(make_problem(4, qid="empty"), candidates=(), prior={}, nothing_found=True)
    table = sanity.label_table([make_problem(4, positive=1, qid="full"), empty], [])
    (line,) = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert (line["queries"], line["as listed"], line["best tied"]) == ("2", "0.500", "0%")


def test_a_ranker_that_reads_places_is_found_out(finished: Path, make_problem: MakeProblem) -> None:
    def ranked(problem: Problem, key: Callable[[str], int]) -> Ranking:
        docids = [candidate.docid for candidate in problem.candidates]
        return Ranking(problem.qid, tuple(sorted(docids, key=key)), (4.0, 3.0, 2.0, 1.0))

    class Scripted(Study):
        def rankings(self, systems: Any, problems: Any) -> dict[str, list[Ranking]]:
            by_text = [ranked(p, lambda docid, p=p: -p.gains.get(docid, 0)) for p in problems]  # type: ignore[misc]
            return {"place": [ranked(p, lambda _: 0) for p in problems], "text": by_text}

    one = at(finished, "x")
    fake = Scripted("x", "small", one.config, one.out, one.models, None)
    systems = [one.system(name, "iranker", "nano") for name in ("place", "text")]
    problems = [make_problem(4, positive=1 + i % 4, qid=f"q{i}") for i in range(8)]
    lines = {row[0]: row[1:] for row in sanity.order_table(fake, systems, problems).rows}
    assert lines["text"][0] == "1.000" and lines["text"][3] == "0.000" and lines["text"][4] == "100%"
    assert float(lines["place"][3]) > 0.02 and lines["place"][4] == "0%"


def test_our_figures_stand_beside_the_papers_for_tasks_both_have(finished: Path) -> None:
    rows = read_results(finished / "main" / "results.json")
    ours = next(r.value for r in rows if (r.task, r.system, r.measure) == ("passage-5", "iranker", "MRR"))
    table = main.beside_paper([row for row in rows if row.task in ("passage-5", "passage-7")])
    line = dict(zip(table.columns, table.rows[0], strict=True))
    assert line["iranker"] == f"{100 * ours:.2f} / 60.98" and "zero-shot" not in line
    assert [row[0] for row in table.rows] == ["passage-5", "passage-7", "average"]
    assert not main.embedded(Study("x", "paper", packaged("paper"), Path("x"), Path("m"), None))
    assert "Beside the paper" not in (finished / "results.md").read_text()


def test_results_without_tables_of_their_own_are_shown_as_usual(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "main", tmp_path / "ir")
    (tmp_path / "ir" / "tables.json").unlink()
    report.write_results(tmp_path, tmp_path / "docs" / "results.md")
    text = (tmp_path / "docs" / "results.md").read_text()
    assert "## ir" in text and "### ir" in text and "[page](../ir/report.html)" in text


def test_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(*arguments: object) -> str:
        result = call(*arguments, "--out", tmp_path / "out")
        assert result.exit_code == 1, result.output
        return re.sub(r"\s+", " ", result.output)

    assert "unknown experiment 'mian'; there are main, zero-shot" in message("mian")
    assert "unknown scale 'huge'" in message("main", "--scale", "huge")
    assert "holds no results yet" in message("report")
    assert "did you mean 'ppo.steps'?" in message("main", "-s", "ppo.stepz=3")
    untold = ("-s", "ppo.token_budget=null", "-s", "warmstart.scratch=null", "-s", "model=nano")
    assert "set ppo.token_budget" in message("main", "--scale", "small", *untold)
    monkeypatch.setitem(sys.modules, "r1ranker.experiments.ir", None)
    with pytest.raises(ConfigError, match="ir cannot be run here"):
        EXPERIMENTS["ir"](Study("ir", "small", packaged("small"), tmp_path, tmp_path / "models", None))


def test_of_all_experiments_one_that_cannot_run_does_not_stop_the_others(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(_: Study) -> None:
        raise DataError("no files")

    monkeypatch.setattr(command, "EXPERIMENTS", {"ir": lacking, "main": EXPERIMENTS["main"]})
    result = call("all", "--scale", "small", "--out", copy, "--json", copy / "result.json")
    assert result.exit_code == 1
    written = parsed(copy / "result.json")
    assert (written["done"], written["failed"]) == (["main"], {"ir": "no files"})
    assert (copy / "results.md").exists()


def test_stars_of_a_test_do_not_end_a_bold_cell() -> None:
    lines = report.markdown(report.Table("T", ("task", "a", "b"), [("x", "**0.800 ±0.1 ****", "0.7 ↓*")], ""), "#")
    assert r"| x | **0.800 ±0.1 \*\*** | 0.7 ↓* |" in lines
