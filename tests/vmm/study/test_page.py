# SPDX-License-Identifier: Apache-2.0
"""The page of a comparison: what is in it, and that nothing of the JSON becomes markup."""

from html.parser import HTMLParser
from typing import Any

import pytest
from compare_sample import event, sample

from daxfault.vmm.study.page import OUTCOMES, render
from daxfault.vmm.study.page.numbers import duration, log_ticks, ticks
from daxfault.vmm.study.page.sequence import folded, laid_out

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{7*7}}"


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def spoilt(value: Any) -> Any:
    """`value` with every string that is for a reader made hostile; names stay unlike one another."""
    if isinstance(value, dict):
        return {key: spoilt(one) if key != "name" else one for key, one in value.items()}
    if isinstance(value, list):
        return [spoilt(one) for one in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


def test_page_of_a_sample_has_every_design_access_and_outcome() -> None:
    found = sample()
    page = Tags(render(found))
    buttons = [attrs for tag, attrs in page.tags if tag == "button" and "aria-controls" in attrs]
    assert len(buttons) == sum(len(row["cells"]) for row in found["rows"])
    for row in found["rows"]:
        assert row["title"] in page.text
    for column in found["columns"]:
        assert column["title"] in page.text
    for outcome in OUTCOMES:
        assert any(outcome in (attrs["class"] or "").split() for attrs in buttons), outcome


def test_page_says_where_model_and_reality_differ_and_judges_nothing_untried() -> None:
    page = Tags(render(sample()))
    assert "Model and reality" in page.text
    for words in ("VM stopped", "unmap+area", "It is told at the access.", "Nobody knows why."):
        assert words in page.text
    buttons = [attrs for tag, attrs in page.tags if tag == "button"]
    (untried,) = [attrs for attrs in buttons if "untried" in (attrs["class"] or "").split()]
    assert "bad" not in (untried["class"] or "").split()
    none = Tags(render(sample() | {"differences": []}))
    assert "Model and reality" not in none.text


def test_page_ids_are_unique_and_what_is_referred_to_is_there() -> None:
    tags = Tags(render(sample())).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in tags:
        for name in ("aria-controls", "aria-labelledby"):
            assert attrs.get(name) is None or attrs[name] in ids
        assert not (attrs.get("href") or "#").startswith(("http", "//"))


def test_page_of_hostile_strings_has_no_markup_from_them() -> None:
    hostile = Tags(render(spoilt(sample())))
    assert [tag for tag, _ in hostile.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in hostile.tags]
    assert not any(name.startswith("on") for _, attrs in hostile.tags for name in attrs)
    assert "alert(1)" in hostile.text
    assert "{{7*7}}" in hostile.text


def test_page_policy_allows_its_own_style_and_script_alone() -> None:
    policy = next(
        attrs["content"]
        for tag, attrs in Tags(render(sample())).tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_page_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        render(sample() | {"version": 2})


def test_page_of_a_comparison_without_plots_has_none() -> None:
    found = {key: value for key, value in sample().items() if key in ("version", "kernel", "columns")}
    tags = Tags(render(found | {"rows": []})).tags
    assert "figure" not in [tag for tag, _ in tags]


def test_events_that_repeat_are_folded_with_their_count() -> None:
    events = [event(0, "task 0.0", "guest kernel", "access")]
    for n in range(50):
        events += [
            event(n, "task 0.0", "host", "fault", n + 1),
            event(n, "host", "guest kernel", "ready", n + 1),
        ]
    events.append(event(60, "host", None, "stop"))
    runs = folded(events)
    assert [(len(run), times) for run, times in runs] == [(1, 1), (2, 50), (1, 1)]
    told = laid_out(events, cycles=12_345, per_second=24_690.0)
    assert len(told.steps) == 4
    assert [frame.label for frame in told.frames] == ["… × 12,345, 24,690/s"]  # noqa: RUF001
    assert any("12,345" in line for line in told.texts)


def test_events_of_turns_stamped_in_another_order_are_folded() -> None:
    turn = [event(0, "task 0.0", "host", what) for what in ("fault", "told", "park", "fail", "ready", "ack")]
    swapped = [turn[0], turn[2], turn[1], *turn[3:]]
    slipped = [*turn[:5], turn[0], turn[5], *turn[1:]]  # an ack after the next fault
    runs = folded([*turn, *swapped, *turn, *slipped, *swapped])
    assert [(len(run), times) for run, times in runs] == [(6, 6)]


def test_events_left_out_in_the_middle_of_a_loop_are_a_part_of_it() -> None:
    turn = [event(0, "task 0.0", "host", "fault"), event(0, "host", "guest kernel", "ready")]
    gap = event(0, "host", None, "...", 0, "6399 more events")
    last = event(0, "host", "task 0.0", "poison")
    told = laid_out([*(turn * 8), turn[0], gap, last], cycles=2000)
    assert [step.texts[0] for step in told.steps] == ["fault", "ready", "poison"]
    assert [frame.label for frame in told.frames] == ["… × 2,000"]  # noqa: RUF001
    kept = laid_out([turn[0], gap, last])
    assert [step.texts[0] for step in kept.steps] == ["fault", "...", "poison"]


def test_events_twice_in_a_row_are_not_folded() -> None:
    events = [event(n, "task 0.0", "host", "fault") for n in range(2)]
    assert [times for _, times in folded(events)] == [1, 1]


def test_sequence_lifelines_stand_from_task_to_file() -> None:
    events = [
        event(0, "file", "host", "bytes"),
        event(1, "host", "guest kernel", "ready"),
        event(2, "guest kernel", "task 0.10", "wake"),
        event(3, "task 0.2", None, "begin"),
    ]
    assert [lane.name for lane in laid_out(events).lanes] == [
        "task 0.2",
        "task 0.10",
        "guest kernel",
        "host",
        "file",
    ]


def test_sequence_steps_stay_inside_the_drawing_and_below_each_other() -> None:
    for row in sample()["rows"]:
        for cell in row["cells"].values():
            told = laid_out(cell["events"])
            heights = [step.top for step in told.steps]
            assert heights == sorted(set(heights))
            for step in told.steps:
                assert step.at - step.width / 2 >= 0
                assert step.at + step.width / 2 <= told.width
                assert step.y < told.height


def test_sequence_of_very_many_steps_says_how_many_are_left_out() -> None:
    told = laid_out([event(n, "host", None, f"step {n}") for n in range(500)])
    assert len(told.steps) + told.left_out == 500
    assert 0 < len(told.steps) < 100


@pytest.mark.parametrize(
    ("ns", "text"), [(0, "0 ns"), (999, "999 ns"), (63_000, "63 µs"), (5e6, "5 ms"), (2.5e9, "2.5 s")]
)
def test_duration_is_written_in_its_unit(ns: float, text: str) -> None:
    assert duration(ns) == text


def test_ticks_are_round_and_within_the_axis() -> None:
    assert ticks(1.03) == [0.0, 0.5, 1.0]
    assert ticks(240) == [0, 50, 100, 150, 200]
    assert log_ticks(30, 800) == [50, 100, 200, 500]
    assert log_ticks(0.5, 2e6) == [1, 10, 100, 1e3, 1e4, 1e5, 1e6]
