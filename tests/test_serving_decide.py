"""What a proxy decides before and after the ranker: bodies, needs, problems. Pure, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.datasets.llm_outcomes import LLM
from r1ranker.datasets.llmrouter import OBJECTIVES, describe
from r1ranker.serving.body import BodyError, parse
from r1ranker.serving.decide import Pool, decision_of, pool_of, read_ask
from r1ranker.serving.needs import needs_of
from r1ranker.serving.route_settings import RouteSettings, UpstreamSettings

SETTINGS: dict[str, Any] = {
    "upstreams": {"here": {"base_url": "http://127.0.0.1:1/v1/"}},
    "models": {
        "small": {"upstream": "here", "size": "7B", "description": "Quick.", "input_price": 0.2, "output_price": 0.4},
        "large": {"upstream": "here", "description": "Slow.", "input_price": 2, "output_price": 4, "context": 4000},
    },
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def settings(**more: Any) -> RouteSettings:
    return RouteSettings.model_validate(SETTINGS | more)


def pool(values: dict[str, Any], settings_: RouteSettings | None = None, model: str = "auto", **more: Any) -> Pool:
    used = settings_ or settings()
    asked = read_ask(model, values, {}, used)
    assert asked is not None
    return pool_of(asked, needs_of(values), used, **more)


def user(text: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} | more


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.booleans(), st.integers(0, 5), st.sampled_from([None, 2]))
def test_a_body_changes_in_its_model_alone(others: Any, ours: bool, place: int, indent: int | None) -> None:
    members = [(key, value) for key, value in others.items() if key not in ("model", "router")]
    members.insert(min(place, len(members)), ("model", "auto"))
    before = [("router", {"fallbacks": 1})] if ours else []
    text = json.dumps(dict(before + members), indent=indent)
    assert json.loads(parse(text.encode()).with_model("m")) == dict(members) | {"model": "m"}


def test_the_other_bytes_are_kept() -> None:
    text = ' {"a":1.50,  "router" : {"x": [1]} , "model":"auto", "b" : "\\u00e9é" }\n'
    assert parse(text.encode()).with_model("x").decode() == ' {"a":1.50 , "model":"x", "b" : "\\u00e9é" }\n'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a":1,}', '{"a" 1}', '{"a":1} 2', '{"a":1,"a":1}', "{1:2}", "nul"])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(BodyError):
        parse(text.encode())


def test_a_problem_reads_as_the_routing_data_do() -> None:
    problem = pool(user("why is the sky blue")).problem
    assert problem is not None
    assert (problem.scenario, problem.query, problem.qid) == ("routing", "why is the sky blue", "route")
    assert problem.candidates[0].text == describe("small", LLM("7B", "Quick.", 0.2, 0.4))
    assert problem.candidates[0].text == "small | 7B | $0.20 in, $0.40 out per million tokens | Quick."


@pytest.mark.parametrize(
    ("model", "wished", "said"),
    [
        ("auto", None, OBJECTIVES["balance"].sentence),
        ("auto:quality", None, OBJECTIVES["performance"].sentence),
        ("auto:cost", None, OBJECTIVES["cost"].sentence),
        ("auto:cost", 1.0, "Only answer quality matters: quality 100%, price 0%."),
        ("auto", 0.7, "Quality matters most: quality 70%, price 30%."),
        ("auto", 0.0, "Only price matters: quality 0%, price 100%."),
    ],
)
def test_a_wish_is_a_sentence_of_the_data_or_a_number_as_it_is(model: str, wished: float | None, said: str) -> None:
    problem = pool(user("x", router={"cost_quality": wished}), model=model).problem
    assert problem is not None and problem.objective == said


def test_a_router_has_a_number_of_its_own() -> None:
    used = settings(routers={"auto": {"cost_quality": 0.0}})
    for model, said in (("auto", "Only price matters: quality 0%, price 100%."), ("auto:cost", "Price matters most.")):
        problem = pool(user("x"), used, model).problem
        assert problem is not None and problem.objective == said


def test_a_routers_own_objective_stands_where_nothing_is_wished() -> None:
    used = settings(routers={"auto": {"objective": "In French."}})
    for model, sentence in (("auto", "In French."), ("auto:cost", OBJECTIVES["cost"].sentence)):
        problem = pool(user("x"), used, model).problem
        assert problem is not None and problem.objective == sentence


def test_the_places_of_a_prior_are_shown() -> None:
    problem = pool(user("x"), settings(routers={"auto": {"prior": {"small": 0.1, "large": 0.9}}})).problem
    assert problem is not None
    assert [candidate.note for candidate in problem.candidates] == ["average 2", "average 1"]


def test_the_query_is_what_the_user_said_last_and_before() -> None:
    turns = [("system", "Be brief."), ("user", "Write a loop."), ("assistant", "for ..."), ("user", "And in Python?")]
    values = {"messages": [{"role": role, "content": text} for role, text in turns]}
    assert needs_of(values).query == "Write a loop.\nAnd in Python?"
    long = {"messages": [{"role": "user", "content": "first"}, {"role": "user", "content": "word " * 400}]}
    assert needs_of(long).query == ("word " * 200).strip()


@pytest.mark.parametrize(
    ("values", "query"),
    [({}, "(no text)"), (user(None), "(no text)"), ({"messages": [{"role": "system", "content": "S"}]}, "S")],
)
def test_there_is_always_a_query(values: dict[str, Any], query: str) -> None:
    assert needs_of(values).query == query


@given(VALUES)
def test_no_messages_are_too_odd(messages: Any) -> None:
    assert needs_of({"messages": messages, "tools": messages, "max_tokens": messages, "n": messages}).query


def test_images_are_not_counted_by_their_bytes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:" + "x" * 1_000_000}}
    needs = needs_of(user([{"type": "text", "text": "what is it"}, image]))
    assert needs.images and needs.prompt_tokens < 2000


def test_history_with_tools_needs_an_llm_that_knows_them() -> None:
    call = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
    assert needs_of({"messages": [call]}).tools
    assert needs_of({"messages": [{"role": "tool", "content": "4"}]}).tools
    assert not needs_of(user("x", tools=[], response_format={"type": "text"})).tools


def test_the_price_cap_the_budget_and_the_key_leave_out_by_name() -> None:
    values = user("x", max_tokens=1000)
    assert pool(user("x", max_tokens=1000, router={"max_cost": 0.001})).left_out == {"large": "max_cost"}
    assert pool(values, left=0.001).left_out == {"large": "budget"}
    assert pool(values, allowed={"large"}).left_out == {"small": "key"}
    assert pool(user("x", n=10, max_tokens=1000)).costs["small"] == pytest.approx(0.004, rel=0.01)
    assert pool(user("x" * 16_100)).left_out == {"large": "context"}


def test_an_order_fits_a_header() -> None:
    names = tuple(f"model-{n}" for n in range(200))
    decision = decision_of(Pool(names, dict.fromkeys(names, 0.1), {}, pool(user("x")).problem), names, [0.5] * 200, "r")
    content = json.loads(decision.header())
    assert len(decision.header()) <= 4000 and content["cut"] and content["order"][0]["model"] == "model-0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"routers": {"small": {}}}, "a model has this name too"),
        ({"routers": {"auto": {"models": ["smal"]}}}, "'smal' is not one of large, small"),
        ({"routers": {"a b": {}}}, "printable ASCII"),
        ({"routers": {"a": {"cost_quality": 0.5, "objective": "cheap"}}}, "the same thing: give one"),
        ({"upstreams": {}}, "none are given"),
        ({"models": {}, "routers": {"auto": {}}}, "no `models`"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    "url", ["ftp://x/v1", "http://user:pw@host/v1", "127.0.0.1:8000", "http://h/v1?key=1", "http://"]
)
def test_an_upstreams_address_is_plain_http(url: str) -> None:
    with pytest.raises(ValueError, match="no http"):
        UpstreamSettings(base_url=url)
