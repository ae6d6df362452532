# SPDX-License-Identifier: Apache-2.0
"""The layout of the page's plots: pace of other tasks, latencies, loop rates.

Owns scales, ticks and the positions of marks; the template draws them.  Units are CSS pixels at natural
size.  Must not measure anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from daxfault.vmm.study.page.numbers import count, duration, log_ticks, rate, ticks

WIDTH = 440
COLOURS = 8  # of the style sheet's palette
MOST_DOTS = 160  # of one design; more would not be distinguishable

Json = Mapping[str, Any]
Tick = tuple[float, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One series of the pace."""

    label: str
    path: str
    colour: int
    dashed: bool
    ratio: str


@dataclasses.dataclass(frozen=True, slots=True)
class Pace:
    """Pace of the other tasks, 1 undisturbed, over milliseconds."""

    lines: list[Line]
    xs: list[Tick]
    ys: list[Tick]
    height: int = 260
    left: int = 38
    right: int = 428
    top: int = 14
    bottom: int = 222

    @staticmethod
    def of(pace: Json, titles: Mapping[str, str]) -> Pace | None:
        series = [s for s in pace.get("series") or [] if s.get("points")]
        if not series:
            return None
        frame = Pace([], [], [])
        points = [point for s in series for point in s["points"]]
        wide: float = max(*(x for x, _ in points), 1e-3)
        high: float = max(1.0, *(y for _, y in points))

        def across(value: float) -> float:
            return round(frame.left + (frame.right - frame.left) * value / wide, 1)

        def up(value: float) -> float:
            return round(frame.bottom - (frame.bottom - frame.top) * value / high, 1)

        colours = {name: n % COLOURS for n, name in enumerate(dict.fromkeys(s.get("design") for s in series))}
        lines = [
            Line(
                label=_pace_label(s, titles),
                path="M" + " L".join(f"{across(x)},{up(y)}" for x, y in s["points"]),
                colour=colours[s.get("design")],
                dashed=not s.get("async", True),
                ratio="" if s.get("ratio") is None else f"{100 * s['ratio']:.0f} % of the pace",
            )
            for s in series
        ]
        return dataclasses.replace(
            frame,
            lines=lines,
            xs=[(across(x), count(x)) for x in ticks(wide)],
            ys=[(up(y), f"{y:g}") for y in ticks(high)],
        )


def _pace_label(series: Json, titles: Mapping[str, str]) -> str:
    if series.get("label"):
        return str(series["label"])
    design = str(series.get("design", ""))
    return f"{titles.get(design, design)}, async {'on' if series.get('async') else 'off'}"


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """One design's latencies: a dot each, median and 99th percentile."""

    title: str
    y: float
    dots: list[tuple[float, float]]
    p50: float
    p99: float
    label: str
    samples: int


@dataclasses.dataclass(frozen=True, slots=True)
class Latency:
    """From the access to its end, microseconds, on a logarithmic axis."""

    rows: list[Spread]
    xs: list[Tick]
    height: float
    left: int = 14
    right: int = 424

    @staticmethod
    def of(found: Sequence[Json], titles: Mapping[str, str]) -> Latency | None:
        entries = [entry for entry in found if entry.get("p50_us")]
        if not entries:
            return None
        samples = [
            [us for us in entry.get("samples") or [] if us > 0] or [entry["p50_us"], entry["p99_us"]]
            for entry in entries
        ]
        values = [us for list_ in samples for us in list_]
        marks = [entry[name] for entry in entries for name in ("p50_us", "p99_us")]
        low, high = min(values + marks) / 1.25, max(values + marks) * 1.25
        frame = Latency([], [], 0.0)

        def across(us: float) -> float:
            span = math.log(high / low)
            return round(frame.left + (frame.right - frame.left) * math.log(us / low) / span, 1)

        rows = []
        for n, (entry, one) in enumerate(zip(entries, samples, strict=True)):
            y = 38.0 + 46 * n
            shown = sorted(one)[:: max(1, len(one) // MOST_DOTS)]
            design = str(entry["design"])
            p50, p99 = duration(entry["p50_us"] * 1e3), duration(entry["p99_us"] * 1e3)
            # the height within the band has no meaning: it separates equal values
            dots = [(across(us), round(y + (k * 7 % 5 - 2) * 2.6, 1)) for k, us in enumerate(shown)]
            rows.append(
                Spread(
                    titles.get(design, design),
                    y,
                    dots,
                    across(entry["p50_us"]),
                    across(entry["p99_us"]),
                    f"p50 {p50}, p99 {p99}",
                    len(one),
                )
            )
        return dataclasses.replace(
            frame,
            rows=rows,
            xs=[(across(us), duration(us * 1e3)) for us in log_ticks(low, high)],
            height=38 + 46 * len(rows) + 20,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """One access that looped."""

    title: str
    y: float
    width: float
    value: str


@dataclasses.dataclass(frozen=True, slots=True)
class Rates:
    """Cycles per second of each loop, the fastest first."""

    bars: list[Bar]
    xs: list[Tick]
    height: float
    left: int = 14
    right: int = 424

    @staticmethod
    def of(rows: Sequence[Json], columns: Sequence[Json], titles: Mapping[str, str]) -> Rates | None:
        found = [
            (float(cell["rate"]), f"{titles[row['design']]}: {column['title']}")
            for row in rows
            for column in columns
            if column.get("group") == "behaviour"
            and (cell := row["cells"].get(column["name"]))
            and cell["outcome"] == "loop"
            and cell.get("rate")
        ]
        if not found:
            return None
        found.sort(key=lambda pair: -pair[0])
        frame = Rates([], [], 0.0)
        scale = (frame.right - frame.left) / found[0][0]
        bars = [
            Bar(title, 20.0 + 34 * n, round(max(value * scale, 1.0), 1), rate(value))
            for n, (value, title) in enumerate(found)
        ]
        return dataclasses.replace(
            frame,
            bars=bars,
            xs=[(round(frame.left + value * scale, 1), count(value)) for value in ticks(found[0][0], 4)],
            height=20 + 34 * len(bars) + 22,
        )
