"""The style sheet of a report: light and dark as the reader has chosen, legible on paper and on a phone.

Series colours are Okabe & Ito's (2008), told apart with any colour vision; on a dark page black becomes white and blue is
lighter. Nothing is fetched: fonts are the system's own.
"""

from __future__ import annotations

LIGHT = {
    "bg": "#ffffff", "ink": "#1b1f24", "soft": "#57606a", "line": "#d0d7de", "panel": "#f6f8fa", "warn": "#a3180f",
    "warnbg": "#fdecea", "link": "#0550ae",
    "c0": "#0072b2", "c1": "#d55e00", "c2": "#009e73", "c3": "#1b1f24", "c4": "#cc79a7", "c5": "#e69f00", "c6": "#56b4e9",
    "c7": "#8a8a8a",
}  # fmt: skip
DARK = {
    "bg": "#14171c", "ink": "#e6e9ee", "soft": "#a3adb8", "line": "#3a414b", "panel": "#1d2229", "warn": "#ff9a90",
    "warnbg": "#3a1a18", "link": "#7db7ff",
    "c0": "#3f9fdc", "c1": "#e8702a", "c2": "#1fb98b", "c3": "#e6e9ee", "c4": "#d68db6", "c5": "#e69f00", "c6": "#56b4e9",
    "c7": "#9a9a9a",
}  # fmt: skip

RULES = """
*{box-sizing:border-box}
html{background:var(--bg);color:var(--ink);-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:74rem;padding:1.5rem 1rem 4rem;
font:1rem/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.25;margin:.2rem 0 .6rem}
h2{font-size:1.3rem;margin:2.6rem 0 .6rem;padding-top:.7rem;border-top:2px solid var(--line)}
h3{font-size:1.08rem;margin:1.9rem 0 .5rem}
h4{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.5rem 0;max-width:52rem}
a{color:var(--link)}
.lead{font-size:1.06rem}
.warning{color:var(--warn);background:var(--warnbg);border-left:4px solid var(--warn);padding:.5rem .8rem;font-weight:600}
nav ul{list-style:none;padding:0;margin:.8rem 0;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.94rem}
.scroll{overflow-x:auto;margin:.8rem 0 .3rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:0 0 .35rem}
caption span{position:sticky;left:0;display:inline-block;max-width:min(72rem,calc(100vw - 2.2rem))}
th,td{padding:.3rem .7rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{overflow-wrap:normal;vertical-align:bottom;border-bottom:2px solid var(--soft);font-weight:600;white-space:normal}
th.w,td.w{text-align:left;white-space:normal;min-width:6rem}
tbody th{font-weight:400;text-align:left;white-space:normal;min-width:8.5rem;max-width:24rem;
position:sticky;left:0;background:var(--bg)}
tr.strong th,tr.strong td{font-weight:650}
td small{display:block;color:var(--soft);font-size:.84em;font-weight:400}
.notes{color:var(--soft);font-size:.86rem;margin:.2rem 0 1rem;padding:0;list-style:none;max-width:60rem}
dl.card{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,15.5rem),1fr));margin:.8rem 1px .8rem 0}
dl.card div{background:var(--panel);border:1px solid var(--line);margin:0 -1px -1px 0;padding:.45rem .7rem}
dl.card dt{color:var(--soft);font-size:.8rem}
dl.card dd{margin:0}
dl.card .warned{background:var(--warnbg)}
dl.card .warned dd{color:var(--warn);font-weight:700}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,27rem),1fr));gap:1.2rem 2rem;margin:1rem 0}
figure{margin:0;max-width:40rem}
figcaption{font-size:.88rem;color:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;list-style:none;margin:.2rem 0;padding:0;font-size:.88rem}
.legend li{display:flex;align-items:center;gap:.4rem}
.legend svg{flex:none}
details{margin:.7rem 0;border:1px solid var(--line);border-radius:4px;padding:0 .8rem}
summary{cursor:pointer;padding:.45rem 0;font-weight:600}
pre{font:.82rem/1.45 ui-monospace,Consolas,Menlo,monospace;white-space:pre-wrap;margin:.2rem 0 .8rem}
footer{margin-top:3rem;color:var(--soft);font-size:.86rem}
svg.chart{display:block;width:100%;height:auto;font-family:inherit}
svg text{fill:var(--ink);font-size:12.5px}
svg text.tick,svg text.note{fill:var(--soft);font-size:12px}
svg text.label{font-size:12.5px}
svg .grid{stroke:var(--line);stroke-width:1}
svg .axis{stroke:var(--soft);stroke-width:1.2}
svg .rule{stroke:var(--soft);stroke-width:1.3;stroke-dasharray:5 4}
svg .line{fill:none;stroke-width:2.2;stroke-linejoin:round}
svg .band{stroke:none;opacity:.17}
svg .mark{stroke:var(--bg);stroke-width:.8}
svg .bar{stroke:var(--ink);stroke-width:.6}
svg text.value.pale{fill:#10202e}
svg text.value.dark{fill:#fff}
svg rect.bar.s7{fill:var(--line)}
svg .cell{stroke:var(--line)}
svg .best{fill:none;stroke:#d55e00;stroke-width:3}
@media (max-width:34rem){
svg text,svg text.label{font-size:14.5px}
svg text.tick,svg text.note{font-size:14px}
h1{font-size:1.4rem}
}
"""

PRINT = """
@page{margin:14mm}
html{font-size:9.5pt}
body{max-width:none;padding:0}
pre{columns:2;font-size:7pt}
nav{display:none}
.scroll{overflow:visible}
table{font-size:7.8pt}
th,td{padding:.18rem .35rem}
tbody th,caption span{position:static}
tbody th{min-width:0}
th.w,td.w{min-width:0}
figure,tr,dl.card div{break-inside:avoid}
h2,h3,h4,caption{break-after:avoid}
.pictures{grid-template-columns:1fr 1fr;gap:.8rem 1.2rem}
details{border:0;padding:0}
details::details-content{content-visibility:visible;display:block;height:auto}
"""


def style_sheet() -> str:
    """All of it, as the content of one <style>."""
    filled = ("band", "mark", "bar")
    series = "".join(
        f"svg .line.s{n}{{stroke:var(--c{n})}}{','.join(f'svg .{kind}.s{n}' for kind in filled)}{{fill:var(--c{n})}}\n"
        for n in range(8)
    )
    return (
        f":root{{color-scheme:light dark;{_variables(LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}\n"
        f"{RULES.strip()}\n{series}@media print{{{PRINT.strip()}}}\n"
    )


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())
