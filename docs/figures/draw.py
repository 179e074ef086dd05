"""Draw the figures of the documentation as SVG files beside this script.

`python docs/figures/draw.py`. The numbers of charts are those of the pages that stand beside them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

INK, PALE, BLUE, ORANGE = "#263238", "#eceff1", "#3f6fb5", "#d9822b"
HERE = Path(__file__).resolve().parent
Row = tuple[str, float, str]  # label, value, text behind the bar


def page(width: int, height: int, parts: Sequence[str], title: str) -> str:
    """Return an SVG image on a white page, which is readable in dark themes too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'role="img" font-family="sans-serif" font-size="13" fill="{INK}">\n'
        f"<title>{title}</title>\n"
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>\n'
        f'<rect width="{width}" height="{height}" rx="6" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, anchor: str = "start", size: int = 13) -> str:
    """Return words at a place."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}">{words}</text>'


def box(x: float, y: float, width: float, lines: Sequence[str], fill: str = PALE) -> str:
    """Return a box of 44 pixels with up to two centred lines."""
    first = y + (27 if len(lines) == 1 else 19)
    words = [text(x + width / 2, first + 16 * i, line, "middle") for i, line in enumerate(lines)]
    frame = f'<rect x="{x}" y="{y}" width="{width}" height="44" rx="5" fill="{fill}"'
    return "\n".join([f'{frame} stroke="{INK}"/>', *words])


def arrow(*points: tuple[float, float]) -> str:
    """Return a line through some points with an arrowhead at its end."""
    path = "L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="{INK}" marker-end="url(#end)"/>'


def bars(title: str, groups: Sequence[tuple[str, Sequence[Row]]], left: int = 190) -> str:
    """Return horizontal bars, each group in a scale of its own."""
    parts, y = [], 14
    for name, rows in groups:
        parts.append(text(16, y + 14, name, size=14))
        y += 26
        longest = max(value for _, value, _ in rows)
        for i, (label, value, words) in enumerate(rows):
            width = max(2.0, 300 * value / longest)
            parts.append(text(left - 8, y + 13, label, "end"))
            fill = BLUE if i else ORANGE
            parts.append(
                f'<rect x="{left}" y="{y}" width="{width:.1f}" height="17" fill="{fill}"/>'
            )
            parts.append(text(left + width + 6, y + 13, words))
            y += 23
        y += 10
    return page(left + 430, y + 6, parts, title)


def flow() -> str:
    """Return the rooms of the package and the way of a search through them."""
    rooms = {
        "task": (16, 16, ["task/", "model, data, metric"]),
        "model": (196, 16, ["model/", "modules, channel groups"]),
        "space": (376, 16, ["space/", "choices per module"]),
        "float": (376, 84, ["export/float_graph", "float ONNX graph"]),
        "targets": (196, 84, ["targets/", "latency table"]),
        "problem": (376, 152, ["search/problem", "everything made once"]),
        "propose": (376, 220, ["search/propose", "next candidate"]),
        "evaluate": (376, 288, ["search/evaluate", "race, recovery"]),
        "compress": (196, 288, ["compress/", "prune, factorise, quantize"]),
        "finish": (376, 356, ["search/finish", "files that were run"]),
        "lowering": (196, 356, ["export/lowering", "compressed ONNX file"]),
        "results": (376, 424, ["results/", "front"]),
        "report": (196, 424, ["report/", "report.html"]),
    }
    parts = [box(x, y, 160, lines) for x, y, lines in rooms.values()]
    for one, other in (
        *(("task", "model"), ("model", "space"), ("compress", "evaluate")),
        *(("lowering", "finish"),),
    ):
        parts.append(
            arrow(
                (rooms[one][0] + 160, rooms[one][1] + 22), (rooms[other][0], rooms[other][1] + 22)
            )
        )
    for upper, lower in (
        *(("float", "problem"), ("problem", "propose"), ("propose", "evaluate")),
        *(("evaluate", "finish"), ("finish", "results")),
    ):
        x = rooms[upper][0] + 80
        parts.append(arrow((x, rooms[upper][1] + 44), (x, rooms[lower][1])))
    parts += [
        arrow((536, 38), (556, 38), (556, 174), (536, 174)),  # space -> problem
        arrow((276, 60), (276, 72), (366, 72), (366, 100), (376, 100)),  # model -> float graph
        arrow((276, 128), (276, 174), (376, 174)),  # targets -> problem
        arrow((536, 310), (570, 310), (570, 242), (536, 242)),  # evaluate -> propose
        text(576, 280, "trial"),
        arrow((376, 446), (356, 446)),  # results -> report
    ]
    return page(630, 484, parts, "The flow of a search through the rooms of the package")


def library() -> str:
    """Return three modules with their variants, one of which each candidate takes."""
    parts = [text(16, 26, "the library: each module under each config, made once", size=14)]
    names = ("8 bits", "4 bits", "half pruned, 4 bits")
    taken = {"conv1": 1, "attention.q": 0, "mlp.up": 2}
    for row, (module, pick) in enumerate(taken.items()):
        y = 42 + 58 * row
        parts.append(text(110, y + 27, module, "end"))
        for column, name in enumerate(names):
            fill = "#fbe3cc" if column == pick else PALE
            parts.append(box(122 + 152 * column, y, 142, [name], fill))
        parts.append(arrow((122 + 152 * pick + 71, y + 44), (122 + 152 * pick + 71, y + 54)))
    parts.append(box(122, 222, 446, ["a candidate: one variant of each module,", "swapped in"]))
    return page(
        590, 282, parts, "Variants are made once, candidates are stitched together from them"
    )


def race() -> str:
    """Return candidates that see growing parts of the validation split."""
    parts = [text(16, 26, "validation samples that a candidate sees", size=14)]
    rows = (
        ("too large or too slow", 0, "size and latency are known before any weight is changed"),
        ("surely dominated", 1, "worse than a smaller and faster trial on the same samples"),
        ("surely below the limit", 2, "the loss allowed is exceeded"),
        ("in the front", 4, "sees all samples; may be trained"),
    )
    for i, (label, seen, words) in enumerate(rows):
        y = 42 + 40 * i
        parts.append(text(170, y + 17, label, "end"))
        for part in range(4):
            fill = ORANGE if part < seen else PALE
            width = (20, 30, 50, 80)[part]
            x = 182 + (0, 24, 58, 112)[part]
            parts.append(
                f'<rect x="{x}" y="{y}" width="{width}" height="26" rx="3" fill="{fill}"/>'
            )
        parts.append(text(388, y + 17, words, size=12))
    return page(720, 210, parts, "Cheap checks come first, and a race stops most candidates early")


def scatter() -> str:
    """Return predicted against measured latency of the files of a run."""
    predicted = (0.55154, 0.42649, 0.5354, 0.72792, 0.50272, 0.53873, 0.60361, 0.69385)
    measured = (0.56358, 0.43788, 0.53861, 0.68808, 0.49761, 0.46097, 0.50789, 0.74215)
    low, high, side = 0.35, 0.8, 300

    def x(value: float) -> float:
        return 70 + side * (value - low) / (high - low)

    def y(value: float) -> float:
        return 20 + side * (high - value) / (high - low)

    parts = [
        f'<rect x="70" y="20" width="{side}" height="{side}" fill="none" stroke="{INK}"/>',
        f'<path d="M{x(low):g} {y(low):g}L{x(high):g} {y(high):g}" stroke="{INK}" '
        'stroke-dasharray="4 4"/>',
        text(70 + side / 2, 365, "predicted latency (ms)", "middle"),
        f'<g transform="rotate(-90 22 170)">{text(22, 174, "measured latency (ms)", "middle")}</g>',
    ]
    for tick in (0.4, 0.5, 0.6, 0.7, 0.8):
        parts.append(text(x(tick), 340, f"{tick:.1f}", "middle"))
        parts.append(text(62, y(tick) + 4, f"{tick:.1f}", "end"))
    for one, other in zip(predicted, measured, strict=True):
        parts.append(f'<circle cx="{x(one):.1f}" cy="{y(other):.1f}" r="5" fill="{BLUE}"/>')
    return page(400, 380, parts, "Predicted against measured latency of eight files")


def curves(data: Path) -> str:
    """Return the hypervolume over time that `benchmarks.anytime --against` wrote."""
    found: dict[str, list[list[float]]] = json.loads(data.read_text())["curves"]
    names = {"": "this state", "_before": "the state before"}
    width, height, end = 520, 250, max(curve[-1][0] for curve in found.values()) / 60

    def x(minutes: float) -> float:
        return 60 + width * minutes / end

    def y(value: float) -> float:
        return 20 + height * (1 - value)

    parts = [
        f'<rect x="60" y="20" width="{width}" height="{height}" fill="none" stroke="{INK}"/>',
        text(60 + width / 2, 310, "minutes", "middle"),
        f'<g transform="rotate(-90 18 145)">{text(18, 149, "hypervolume", "middle")}</g>',
    ]
    for tick in range(0, int(end) + 1, 5):
        parts.append(text(x(tick), 290, f"{tick}", "middle"))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(text(54, y(tick) + 4, f"{tick:g}", "end"))
    for key, curve in sorted(found.items()):
        before = key.endswith("_before")
        at, path = 0.0, f"M{x(0):.1f} {y(0):.1f}"
        for seconds, value in curve:
            path += f"L{x(seconds / 60):.1f} {y(at):.1f}L{x(seconds / 60):.1f} {y(value):.1f}"
            at = value
        path += f"L{x(end):.1f} {y(at):.1f}"
        colour = ORANGE if before else BLUE
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        line = 210 + 20 * before
        parts.append(f'<path d="M380 {line}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(text(410, line + 4, names["_before" if before else ""]))
    return page(600, 320, parts, "Hypervolume of the front over time")


def figures() -> dict[str, str]:
    """Return the content of each file by its name."""
    sizes = ((32, 4.0), (6, 0.756), (5, 0.631), (4, 0.505), (3, 0.381), (2, 0.256))
    size_rows = [(f"{n} bits" if n < 32 else "float", v, f"{v:g}") for n, v in sizes]
    time_rows = [("float", 1.0, "1.00x")]
    time_rows += [(f"{n} bits", 0.26, "0.26x") for n in (6, 5, 4, 3, 2)]
    joint = [
        ("all kinds together", 0.7801, "0.780"),
        ("one after another", 0.7303, "0.730"),
        ("pruning only", 0.6110, "0.611"),
        ("bits only", 0.4939, "0.494"),
        ("rank only", 0.2441, "0.244"),
    ]
    return {
        "flow.svg": flow(),
        "library.svg": library(),
        "joint.svg": bars("Dominated share", [("share of the box after 100 trials", joint)]),
        "race.svg": race(),
        "latency.svg": scatter(),
        "anytime.svg": curves(HERE.parent / "benchmarks" / "data" / "anytime_demo.json"),
        "packed.svg": bars(
            "Size and time of a packed layer",
            [
                ("bytes per weight of the file", size_rows),
                ("time of the layer, inputs of 8 bits but for float", time_rows),
            ],
            left=90,
        ),
    }


if __name__ == "__main__":
    for name, content in figures().items():
        (HERE / name).write_text(content)
