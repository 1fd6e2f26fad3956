"""Charts that answer to the reader, as Vega-Lite; each is known by the columns of its CSV."""

from typing import Any

import pandas as pd

from irattack.results.names import method_name, title

Spec = dict[str, Any]
# Okabe and Ito's colours without black and yellow, which a dark or a light page swallows.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C"]
FAINT = {"opacity": {"condition": {"param": "line", "value": 1}, "value": 0.15}}
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name, never fetched


def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that sets `vegaEmbed`."""
    import vl_convert

    code = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return code.replace("</script", r"<\/script")


def of_frame(heading: str, frame: pd.DataFrame) -> Spec | None:
    """The chart of a figure's data; None if there is none for it."""
    columns = {*frame.columns}
    for needs, draw in KNOWN:
        if needs <= columns:
            return _page(heading) | draw(frame)
    return None


def _page(heading: str) -> Spec:
    """What all charts share; colours of text and lines are the page's."""
    text = {"labelColor": "currentColor", "titleColor": "currentColor"}
    return {
        "$schema": SCHEMA,
        "description": heading,
        "width": "container",
        "height": 300,
        "background": "transparent",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": {
            "font": "inherit",
            "view": {"stroke": None},
            "axis": {**text, "titleFontWeight": "normal", "gridOpacity": 0.25, "grid": True}
            | {"domainColor": "currentColor", "tickColor": "currentColor"},
            "legend": {**text, "orient": "bottom", "columns": 3, "title": None, "symbolOpacity": 1},
            "range": {"category": COLOURS},
        },
    }


def _choice(label: str, options: pd.Series) -> list[Spec]:
    """The list from which the reader chooses the panel that is `shown`."""
    names = list(dict.fromkeys(options))
    bind = {"input": "select", "options": names, "name": f"{label} "}
    return [{"name": "shown", "value": names[0], "bind": bind}]


def _legend(field: str) -> Spec:
    """The parameter by which a click on the legend picks a line out."""
    return {"name": "line", "select": {"type": "point", "fields": [field]}, "bind": "legend"}


def _shape(field: str) -> Spec:
    """A shape a line, beside its colour."""
    return {"field": field, "type": "nominal", "sort": None, "legend": None}


def _pairs(frame: pd.DataFrame) -> pd.Series:
    return frame.source.map(title) + " → " + frame.target.map(title)


def _records(frame: pd.DataFrame) -> Spec:
    return {"values": frame.to_dict("records")}


def curves(frame: pd.DataFrame) -> Spec:
    """Success at every step, the step marked that leave-one-out chooses for most images."""
    data = pd.DataFrame(
        {
            "pair": _pairs(frame),
            "method": frame.attack.map(method_name),
            "step": frame.step,
            "success": frame.success_rate_percent,
            "chosen": frame.step == frame.chosen_step,
        }
    )
    shared = {
        "x": {"field": "step", "type": "quantitative", "title": "step", "axis": {"tickMinStep": 1}},
        "y": {"field": "success", "type": "quantitative", "title": "success rate (%)"},
        "color": {"field": "method", "type": "nominal", "sort": None},
    }
    said = [
        {"field": "method"},
        {"field": "step"},
        {"field": "success", "format": ".1f", "title": "success rate (%)"},
        {"field": "chosen", "title": "chosen by leave-one-out"},
    ]
    return {
        "data": _records(data),
        "params": _choice("From and to", data.pair),
        "transform": [{"filter": "datum.pair == shown"}],
        "encoding": shared,
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "params": [_legend("method")],
                "encoding": FAINT,
            },
            {
                "transform": [{"filter": "datum.chosen"}],
                "mark": {"type": "point", "size": 90, "filled": True},
                "encoding": {"shape": _shape("method")},
            },
            {"mark": {"type": "point", "opacity": 0, "size": 120}, "encoding": {"tooltip": said}},
        ],
    }


def utilities(frame: pd.DataFrame) -> Spec:
    """Transfer utility against interaction, a point a weight c, with the least-squares line."""
    data = pd.DataFrame(
        {
            "panel": _pairs(frame) + frame.p.map(", p = {:g}".format),
            "c": frame.c.map("{:g}".format),
            "interaction": frame.interaction,
            "utility": frame.transfer_utility,
            "images": frame.n,
        }
    )
    scale = {"scale": {"zero": False, "padding": 24}, "type": "quantitative"}  # for the labels
    where = {
        "x": {"field": "interaction", "title": "interaction (logits)", **scale},
        "y": {"field": "utility", "title": "transfer utility (logits)", **scale},
    }
    said = [
        *({"field": "c"}, {"field": "images"}),
        {"field": "interaction", "format": ".3f"},
        {"field": "utility", "format": ".3f", "title": "transfer utility"},
    ]
    return {
        "data": _records(data),
        "params": _choice("From, to and norm", data.panel),
        "transform": [{"filter": "datum.panel == shown"}],
        "layer": [
            {
                "transform": [{"regression": "utility", "on": "interaction"}],
                "mark": {"type": "line", "color": COLOURS[0], "opacity": 0.7},
                "encoding": where,
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "color": COLOURS[0]}
                | {"opacity": 1},
                "encoding": where | {"tooltip": said},
            },
            {
                "transform": [{"calculate": "'c = ' + datum.c", "as": "label"}],
                "mark": {"type": "text", "dy": -11, "color": "currentColor"},
                "encoding": where | {"text": {"field": "label"}},
            },
        ],
    }


def sweep(frame: pd.DataFrame) -> Spec:
    """Success against λ, a line a target, with the intervals."""
    data = pd.DataFrame(
        {
            "source": frame.source.map(title),
            "target": frame.target.map(title),
            "lam": frame.lam,
            "success": frame.success_rate_percent,
            "low": frame.ci_low,
            "high": frame.ci_high,
        }
    )
    ticks = sorted({*data.lam})
    x = {
        "field": "lam",
        "type": "quantitative",
        "title": "λ",
        "scale": {"type": "symlog", "constant": 0.1},
        "axis": {"values": ticks, "format": "~g"},
    }
    colour = {"field": "target", "type": "nominal", "sort": None}
    said = [
        *({"field": "target"}, {"field": "lam", "title": "λ"}),
        *({"field": name, "format": ".1f"} for name in ("success", "low", "high")),
    ]
    y = {"field": "success", "type": "quantitative", "title": "success rate (%)"}
    return {
        "data": _records(data),
        "params": _choice("Source", data.source),
        "transform": [{"filter": "datum.source == shown"}],
        "encoding": {"x": x, "color": colour},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.35},
                "encoding": {"y": y | {"field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line"},
                "params": [_legend("target")],
                "encoding": {"y": y, **FAINT},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {"y": y, "shape": _shape("target"), "tooltip": said, **FAINT},
            },
        ],
    }


KNOWN = [
    ({"step", "chosen_step", "success_rate_percent"}, curves),
    ({"c", "p", "interaction", "transfer_utility"}, utilities),
    ({"lam", "success_rate_percent", "target"}, sweep),
]
