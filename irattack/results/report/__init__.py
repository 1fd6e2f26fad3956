"""The report: one HTML file of what is on the disk, which needs no network.

`build` fills `index.html` (Jinja2, everything escaped) from records, their CSV files and figures,
and the step cache. Charts that answer to the reader are Vega-Lite's: its libraries are 0.9 MB
inline, a quarter of Plotly's, a chart is a few lines of data, and its SVG takes the colours of the
page, so that dark mode needs no second chart.
"""
