"""Tables and charts of the site, from what is committed in benchmarks/results.

A page names them in a comment, `<!-- figure: operators -->`; nothing here holds a measurement.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape

from commands import commands
from engines import all_engines, at_recall, search
from results import Row, digits, newest_run, quality, rows, table_of
from scale import scale_drill, scale_model, scale_sizes, scale_waves
from serving import serving

from csrkern import roofline
from csrkern.roofline import Cost
from csrtrain.charts import COLORS, Series, line_chart

# Not other ways to the same result, but parts of the work: floors of a kind.
PARTS = ("bare ", "one bare ", "write a fresh")
SET_NAMES = {
    "banking77": "Banking77, 1-NN",
    "wordnet45": "WordNet classes, 1-NN",
    "medquad": "MedQuAD, nDCG@10",
    "coco_captions": "COCO captions, nDCG@10",
    "fashion_mnist_ssl": "Fashion-MNIST features, 1-NN",
}
CODES = "CSR"
METHODS = {  # name in quality.csv: name and color in a chart
    "dense": ("dense", "#7f7f7f"),
    "PCA": ("PCA", COLORS[2]),
    "Matryoshka-Adaptor": ("Matryoshka adapter", COLORS[4]),
    "RQ": ("residual quantizer (RQ)", COLORS[3]),
    "PRQ": ("residual quantizer in parts", COLORS[5]),
    CODES: ("codes", COLORS[0]),
    f"{CODES}, asymmetric, packed": ("packed codes, dense queries", COLORS[1]),
}


def machine() -> str:
    """Where and when the figures were measured."""
    run = newest_run()
    facts = run["machine"]
    caches = facts["caches"]
    days = sorted(row["date"][:10] for row in rows())
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    commits = ", ".join(f"`{c[:10]}`" for c in sorted({row["commit"] for row in rows()}))
    versions = run["versions"]
    packages = ("python", "torch", "sentence-transformers", "pyvsag", "faiss-cpu", "scipy")
    return (
        f"{facts['cpu']} (family-model-stepping {facts['family_model_stepping']}), "
        f"{facts['cores']} cores, L2 {caches['L2 Unified']}, L3 {caches['L3 Unified']}, "
        f"{facts['memory_bytes'] / 2**30:.0f} GiB, {facts['csrkern_isa'].upper()}; measured {when} "
        f"at commits {commits}; "
        + ", ".join(f"{name} {versions[name]}" for name in packages if name in versions)
        + "."
    )


def operators() -> str:
    """Every comparison of float32 operators."""
    chosen = [r for r in rows() if not r["op"].startswith("index") and r["dtype"] == "float32"]
    return _comparisons(chosen)


def narrow_operators() -> str:
    """Return the same for float16 and bfloat16."""
    chosen = [r for r in rows() if not r["op"].startswith("index") and r["dtype"] != "float32"]
    return _comparisons(chosen, with_dtype=True)


def _comparisons(chosen: Iterable[Row], *, with_dtype: bool = False) -> str:
    table = [["operator", "sizes", "ours, ms", "beside", "ms", "times as fast"]]
    for row in chosen:
        case = f"{row['case']}, {row['dtype']}" if with_dtype else row["case"]
        theirs = digits(row["peer_ms"]) if row["peer_ms"] else row["note"] or "–"
        ratio = f"{digits(row['ratio'])}×" if row["ratio"] else "–"
        table.append([row["op"], case, digits(row["ours_ms"]), row["peer"], theirs, ratio])
    return table_of(table, left=(0, 1, 3))


def speedups() -> str:
    """Bars: how many times as fast as the fastest other way, for each float32 operator."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows():
        if not row["ratio"] or row["dtype"] != "float32" or row["peer"].startswith(PARTS):
            continue
        key = (row["op"], row["case"])
        if key not in best or float(row["peer_ms"]) < float(best[key]["peer_ms"]):
            best[key] = row
    shown = ("topk_relu", "encode", "decode", "similarity", "info_nce", "train step", "CSRLoss")
    bars = [
        (f"{op}, {_short(case)}", float(row["ratio"]), row["peer"])
        for (op, case), row in best.items()
        if op.startswith(shown) and not case.endswith((" fast", " proposals"))
    ]
    return _bars(bars, "times as fast as the fastest other way (logarithmic)")


def _short(case: str) -> str:
    """Return what tells a case of an operator from its others: k, contrast or codes."""
    kinds = r"k=\d+|self|labels|pair|skewed|uniform|\d+x\d+"
    return " ".join(re.findall(kinds, case)).replace("4096x4096 ", "")


SHAPES = re.compile(r"B=(\d+) d=(\d+) h=(\d+) k=(\d+)( float32 proposals)?$")


def measured_costs() -> list[tuple[str, Cost, float]]:
    """(operator, what it must move and compute, seconds) of what `roofline` can count."""
    found: dict[str, tuple[str, Cost, float]] = {}
    for row in rows():
        if row["dtype"] != "float32":
            continue
        seconds = float(row["ours_ms"]) / 1e3
        if row["op"] == "topk_relu" and (
            size := re.match(r"\[(\d+), (\d+)\] k=(32|1024)$", row["case"])
        ):
            n, h, k = map(int, size.groups())
            found[f"topk_relu, k={k}"] = (
                f"topk_relu, k = {k}",
                roofline.topk_relu(n, h, k),
                seconds,
            )
        elif size := SHAPES.match(row["case"]):
            n, d, h, k = map(int, size.groups()[:4])
            alone = size[5] is not None  # the product that proposes is in float32 as well
            dtype = "float32" if alone or row["op"] != "encode" else "bfloat16"
            costs = {
                "encode": roofline.encode,
                "decode": roofline.decode,
                "decode backward": roofline.decode_backward,
            }
            if row["op"] in costs:
                name = f"{row['op']}{', float32' if alone else ''}, k = {k}"
                cost = costs[row["op"]](n, d, h, k, 4, dtype)
                found[name] = (name, cost, seconds)
    return list(found.values())


def roofs() -> str:
    """Return the roofline: what the machine can do, and where the operators are."""
    ceilings = newest_run()["ceilings"]
    threads = max(ceilings["gemm"], key=int)
    peaks = {name: float(v) / 1e9 for name, v in ceilings["gemm"][threads].items()}
    by_size = {int(size): float(v) / 1e9 for size, v in ceilings["read"][threads].items()}
    memory, cached = by_size[max(by_size)], by_size[min(by_size)]
    points = [
        (name, cost.flops / (cost.read + cost.written), cost.flops / seconds / 1e9)
        for name, cost, seconds in measured_costs()
    ]
    low = min(p[1] for p in points) / 2
    high = max(p[1] for p in points) * 3
    bottom = min(p[2] for p in points) / 3

    def roof(name: str, color: str, peak: float) -> Series:
        start = max(low, bottom / memory)
        return Series(
            name, color, [start, peak / memory, high], [memory * start, peak, peak], dashed=True
        )

    series = [
        roof("bfloat16", "#7f7f7f", peaks["bfloat16"]),
        roof("float32", "#b0b0b0", peaks["float32"]),
    ]
    for (name, a, b), color in zip(points, itertools.cycle(COLORS), strict=False):
        series.append(Series(name, color, [a], [b]))
    chart = line_chart(
        series,
        title="Roofline of the CPU operators",
        x="flops a byte that must be moved",
        y="Gflop/s",
        log=10,
        log_y=True,
    )
    text = (
        f"Measured ceilings, {threads} threads: {memory:.0f} GB/s from memory ({cached:.0f} "
        f"from caches), {peaks['float32']:.0f} Gflop/s in float32 and {peaks['bfloat16']:.0f} "
        "in bfloat16 products. A point on a roof would be as fast as this machine can be."
    )
    return f'<figure class="chart">\n{chart}\n<figcaption>{text}</figcaption>\n</figure>'


def floors() -> str:
    """How far each operator is from the time that nothing could save."""
    table = [["operator", "sizes", "ours, ms", "floor, ms", "share", "bound by"]]
    seen = set()
    for row in rows():
        key = (row["op"], row["case"])
        unwanted = row["dtype"] != "float32" or row["op"].startswith("index")
        if unwanted or not row["floor_ms"] or key in seen:
            continue
        seen.add(key)
        share = (
            f"{100 * float(row['floor_share']):.0f}%"
            if float(row["floor_share"]) >= 0.01
            else "<1%"
        )
        table.append(
            [
                row["op"],
                row["case"],
                digits(row["ours_ms"]),
                digits(row["floor_ms"]),
                share,
                row["bound"],
            ]
        )
    return table_of(table, left=(0, 1, 5))


def by_k() -> str:
    """Scores by the number of active latents, and what each costs."""
    ks = (4, 8, 16, 32, 64)
    table = [
        ["", "compared with", *(f"k = {k}" for k in ks), "dense"],
        ["bytes a code", "", *(str(4 * k) for k in ks), "768"],
    ]
    for name, text in SET_NAMES.items():
        dense = next(
            f"{float(r['score']):.1f}"
            for r in quality()
            if (r["set"], r["method"]) == (name, "dense")
        )
        for method, how in (("", "codes"), (", asymmetric, refitted", "dense queries")):
            scores = [_score(name, CODES + method, k) for k in ks]
            table.append([text if how == "codes" else "", how, *scores, dense])
    return table_of(table, left=(0, 1))


def _score(data: str, method: str, active: int) -> str:
    for row in quality():
        if (row["set"], row["method"], row["active"]) == (data, method, str(active)):
            return f"{float(row['score']):.1f}"
    return "–"


def by_bytes() -> str:
    """Return a chart for each set of texts: score against bytes."""
    charts = []
    for name, text in SET_NAMES.items():
        if _score(name, "PCA", 64) == "–":
            continue
        series = []
        for method, (label, color) in METHODS.items():
            points = [
                (float(r["bytes"]), float(r["score"]))
                for r in quality()
                if r["set"] == name and r["method"] == method and float(r["bytes"]) >= 16
            ]
            if points:
                sizes, scores = zip(*points, strict=True)
                series.append(Series(label, color, sizes, scores, dashed=method == "dense"))
        chart = line_chart(series, title=f"{text} against bytes", x="bytes a vector", log=2)
        charts.append(
            f"<figure>\n<figcaption><strong>{text}</strong></figcaption>\n{chart}\n</figure>"
        )
    return '<div class="charts">\n' + "\n".join(charts) + "\n</div>"


def _bars(bars: Sequence[tuple[str, float, str]], title: str) -> str:
    """Horizontal bars on a logarithmic scale, one below the other, with their numbers."""
    from math import log10

    widest = max(log10(value) for _, value, _ in bars)
    parts = ['<div class="bars" role="list">']
    for name, value, beside in bars:
        width = max(1.0, 100 * log10(max(value, 1.01)) / widest)
        parts.append(
            f'<div role="listitem"><span>{escape(name)}</span><b style="--width:{width:.1f}%">'
            f"{digits(value)}×</b><i>{escape(beside)}</i></div>"
        )
    return "\n".join([*parts, "</div>", f'<p class="note">{escape(title)}</p>'])


FIGURES: dict[str, Callable[[], str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        machine,
        operators,
        narrow_operators,
        speedups,
        search,
        all_engines,
        at_recall,
        roofs,
        floors,
        by_k,
        by_bytes,
        commands,
        scale_drill,
        scale_model,
        scale_sizes,
        scale_waves,
        serving,
    )
}
