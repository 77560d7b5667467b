"""One page to look at a run, or at a comparison of several, in any browser.

    python -m more.report runs/NAME

It writes runs/NAME/report.html, one file that needs neither a server nor a network. What a model
wrote stands in it as JSON, and its script shows that as text, never as HTML. report_data.py gathers
what is shown; how it looks is below, in HTML, CSS and JavaScript.
"""
import json
from pathlib import Path

from more.report_data import describe_comparison, describe_run
from more.terminal import UserError, fail_in_one_line, make_parser

# The page: its style, the places to fill, and the script that fills them from {{data}}.
PAGE = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8"><title>Report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; --line: light-dark(#d5d0c6, #454b52);
  --page: light-dark(#faf9f6, #14171a); --card: light-dark(#ffffff, #1e2226);
  --ink: light-dark(#1b1a18, #f0ede6); --soft: light-dark(#54504a, #bcb7ac);
  --accent: light-dark(#0a4fa8, #93c0ff); --warm: light-dark(#973800, #ffb782) }
* { box-sizing: border-box } [hidden] { display: none !important }
body { max-width: 116rem; margin: auto; padding: 2rem clamp(1rem, 4vw, 3rem) 6rem;
  font: 1rem/1.55 system-ui, sans-serif; font-variant-numeric: tabular-nums;
  color: var(--ink); background: var(--page) }
h1 { max-width: 52rem; margin: 0 0 .6rem; font-size: clamp(1.4rem, 3vw, 2rem); line-height: 1.25;
  text-wrap: balance }
h2 { max-width: 60rem; margin: 2.2rem 0 .2rem; font-size: 1.1rem }
p, label, figcaption { margin: 0; color: var(--soft) }
button, select { padding: .3rem .8rem; border: 1px solid var(--soft); border-radius: .5rem;
  font: inherit; color: var(--ink); background: var(--card); cursor: pointer }
button[aria-pressed=true] { color: var(--page); background: var(--ink) }
:focus-visible, .plot:focus-within { outline: 3px solid var(--accent); outline-offset: 3px }
/* Drawings. Each is 100 wide and 100 high, and stretched over its place. */
svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible }
path { fill: none; stroke: var(--ink); stroke-width: 3; vector-effect: non-scaling-stroke }
.line1, .theta { stroke: var(--accent); stroke-dasharray: 9 5 }
.line2 { stroke: var(--warm); stroke-dasharray: 3 4 }
.line3 { stroke: var(--soft); stroke-dasharray: 14 5 3 5 } .line4 { stroke: var(--warm) }
.thin { stroke: var(--soft); stroke-width: 1.5 } .bar { stroke-width: 10 }
.dot { stroke: var(--accent); stroke-width: 14; stroke-linecap: round }
/* Rows of dots: before and after, or the gains of a comparison. */
#rows { max-width: 62rem; margin: 1.5rem -.8rem }
.row { display: grid; grid-template-columns: minmax(8rem, 14rem) 1fr 9rem; gap: 0 1.2rem;
  width: 100%; padding: .4rem .8rem; border: 0; background: none; text-align: left }
.track, .plot, .axis { position: relative }
.track small { position: absolute; translate: -50%; color: var(--soft) }
.row[aria-pressed=true] { color: inherit; background: var(--card); font-weight: 600 }
/* Curves. The slider over each is not seen, but its arrow keys and clicks are. */
#curves { display: flex; flex-wrap: wrap; gap: 0 3rem }
figure { flex: 1 1 18rem; max-width: 60rem; margin: -1rem 0 0 }
.plot { height: 12rem; margin: .8rem 0; border: solid var(--line); border-width: 1px 0 }
.plot::before { content: attr(data-top); position: absolute; right: 0; bottom: 100%;
  font-size: .8rem; color: var(--soft) }
.plot input { position: absolute; width: 100%; height: 100%; margin: 0; opacity: 0 }
.key, .key i { display: inline-block; margin-right: .8rem }
.key i { position: relative; width: 2rem; height: .6rem }
/* The attempts of an update. */
#tools { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .8rem 1.5rem;
  align-items: center; margin: 1.5rem 0 .8rem; padding: .8rem 0; background: var(--page);
  border-bottom: 1px solid var(--line) }
#tools label, #filters { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center }
#tools label:first-child { flex: 1 1 17rem; max-width: 50rem }
#step { flex: 1; accent-color: var(--accent) } #at { min-width: 5rem }
.cards { display: grid; gap: 1rem; margin-top: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 52rem), 1fr)) }
.card { display: flex; flex-wrap: wrap; gap: 1rem 2rem; padding: 1rem 1.2rem;
  border: 1px solid var(--line); border-radius: .8rem; background: var(--card) }
.card > * { flex: 1 1 14rem } .card > .score { flex: 0 0 13rem }
.axis { height: 4.5rem; margin: .8rem 0 .5rem; border-bottom: 1px solid }
.digits { padding: 0 .4rem; text-align-last: justify; font-size: .8rem; line-height: 1 }
.title { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .3rem 1rem }
.title b { padding: 0 .7rem; border: 1px solid; border-radius: 1rem; font-weight: 600 }
b.plus, b.minus { color: var(--card); background: var(--accent) }
b.minus { background: var(--warm) }
.text { margin-top: .5rem; white-space: pre-wrap; overflow-wrap: anywhere }
del { text-decoration: underline 2px dotted var(--warm); text-underline-offset: .2em }
ins { text-decoration: underline 2px var(--accent); text-underline-offset: .2em }
.environment, .kept { display: block; padding-left: .6rem; border-left: 3px solid }
.environment { color: var(--warm); border-left-style: dashed }
.environment::before { content: "environment: "; font-size: .8rem }
.kept::before { content: "kept of the attempt: "; font-size: .8rem }
@media (max-width: 45rem) { #tools { position: static } .row { grid-template-columns: 1fr auto }
  .track { grid-area: 2 / 1 / 3 / 3; height: 1.5rem } }
</style>
<p id="name"></p><h1 id="sentence"></h1><p id="facts"></p>
<div id="rows"></div><div id="curves"></div>
<div id="tools" hidden>
  <label><b id="at"></b> <input id="step" type="range" min="1" value="1" list="marks"></label>
  <span id="filters" role="group" aria-label="attempts"></span><datalist id="marks"></datalist>
  <label>sorted by <select id="sort"><option>order</option><option value="score">S(y)</option>
    <option>advantage</option></select></label></div>
<p id="note"></p><main id="groups"></main>
<template><svg viewBox="0 0 100 100" preserveAspectRatio="none"><path></path></svg></template>
<script id="data" type="application/json">{{data}}</script>
<script>
const $ = query => document.querySelector(query), data = JSON.parse($("#data").textContent);
let kind = "all";

function make(tag, name = "", ...inside) {  // strings inside become text: none is read as HTML
  const element = Object.assign(document.createElement(tag), {className: name});
  element.append(...inside);
  return element;
}

function draw([name, path]) {  // a path in the style of a class
  const svg = $("template").content.firstChild.cloneNode(true);
  svg.firstChild.setAttribute("class", name);
  svg.firstChild.setAttribute("d", path);
  return svg;
}

function press(button) {  // it alone of its siblings
  for (const other of button.parentNode.children) other.ariaPressed = other === button;
}

function makeRow({name, drawings, labels, words, charts}) {  // with charts it is a button
  const track = make("span", "track", ...drawings.map(draw));
  for (const [x, text] of labels) track.appendChild(make("small", "", text)).style.left = `${x}%`;
  const row = make(charts ? "button" : "div", "row", make("span", "", name), track, words);
  if (charts) row.onclick = row.onfocus = () => {
    press(row);
    $("#curves").replaceChildren(...charts.map(makeChart));
  };
  return row;
}

function makeChart({title, top, lines}) {  // lines: {label, style, path, says}
  const last = lines[0].says.length - 1, cursor = make("i"), caption = make("figcaption");
  const slider = Object.assign(make("input"),
    {type: "range", max: last, value: 0, ariaLabel: title});
  const paths = lines.map(({style, path}) => draw([style, path]));
  const plot = make("div", "plot", ...paths, cursor, slider);
  function show(i) {
    cursor.replaceChildren(draw(["thin", `M${100 * i / (last || 1)} 0V100`]));
    const keys = lines.map(({style, label, says}) => make("span", "key",
      make("i", "", draw([style, "M0 50H100"])), `${label} ${says[i]}`));
    caption.replaceChildren(make("span", "key", `update ${Number(i) + 1}`), ...keys);
  }
  slider.oninput = slider.onpointerleave = () => show(slider.value);
  slider.onpointermove = event => show(Math.round(last *
    Math.max(0, Math.min(1, event.offsetX / slider.clientWidth))));
  plot.dataset.top = top;
  show(0);
  return make("figure", "", make("h2", "", title), plot, caption);
}

function makeText(writer, t, tag) {  // what was written, its outcome and its advantage
  const words = t.words.map(([text, differs, by]) => make(differs ? tag : "span", by, text));
  return make("div", "", make("div", "title", `${writer}: ${t.outcome}`, make("b", ...t.sign)),
    make("div", "text", ...words));
}

function makeScore({verdict, drawings, says}) {  // ten bars; theta and S(y) on the same axis
  const read = {role: "img", ariaLabel: says};  // what a screen reader says in their place
  const axis = Object.assign(make("div", "axis", ...drawings.map(draw)), read);
  return make("div", "score", verdict, axis, make("div", "digits", "0 1 2 3 4 5 6 7 8 9"));
}

function makeCard(t) {
  const card = make("article", "card", makeText(data.writer, t, "del"));
  if (t.judged) card.prepend(makeScore(t.judged));
  if (t.replaced_by) card.append(makeText("put in its place", t.replaced_by, "ins"));
  return card;
}

function showStep() {  // the attempts of the update that the slider is at, group by group
  const step = Number($("#step").value), by = $("#sort").value;
  const rank = t => t[by] ?? t.replaced_by?.[by] ?? -9;  // all alike when sorted by "order"
  const groups = Map.groupBy(data.attempts.filter(t => t.step === step), t => t.question);
  const parts = [];
  for (const [question, group] of groups) {
    const shown = group.filter(t => t.kinds.includes(kind)).sort((s, t) => rank(t) - rank(s));
    const count = `right answer: ${group[0].answer} · ${shown.length} of ${group.length} attempts`;
    if (shown.length) parts.push(make("h2", "", question), make("p", "", count),
      make("div", "cards", ...shown.map(makeCard)));
  }
  if (!parts.length) parts.push(make("p", "", "None in this update."));
  $("#at").textContent = `update ${step}`;
  $("#groups").replaceChildren(...parts);
}

function startRun() {  // joins the slider, the curve, the filters and the order
  const slider = $("#step"), curve = $("#curves input");
  function goTo(step) {
    slider.value = step;
    curve.value = step - 1;
    curve.onpointerleave();
    showStep();
  }
  $("#tools").hidden = false;
  slider.max = Number(curve.max) + 1;
  slider.oninput = () => goTo(slider.value);
  curve.addEventListener("input", () => goTo(Number(curve.value) + 1));
  $("#sort").onchange = showStep;
  for (const name of data.kinds) {
    const found = data.attempts.filter(t => t.kinds.includes(name)).map(t => t.step);
    const button = make("button", "", `${name} ${found.length}`);
    button.onclick = () => {
      kind = name;
      press(button);
      $("#marks").replaceChildren(...[...new Set(found)].map(step => make("option", "", step)));
      goTo(found.find(step => step >= slider.value) ?? found[0] ?? slider.value);
    };
    $("#filters").append(button);
  }
  $("#filters").firstChild?.click();
  goTo(1);
}

document.title = data.name;
for (const id of ["name", "sentence", "facts", "note"]) $(`#${id}`).textContent = data[id];
$("#rows").append(...data.rows.map(makeRow));
$("#curves").append(...data.charts.map(makeChart));
if (data.attempts) startRun(); else $("#rows button").click();
</script>
"""


def write_report(folder):
    """Write folder/report.html and return its path. UserError where there is nothing to show."""
    folder = Path(folder)
    describe = describe_comparison if (folder / "compare.csv").exists() else describe_run
    try:
        page = {"name": folder.resolve().name, **describe(folder)}
        text = json.dumps(page, allow_nan=False).replace("<", r"\u003c")  # so that no tag ends it
        path = folder / "report.html"
        path.write_text(PAGE.replace("{{data}}", text), encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{folder}: no page can be made of it ({type(e).__name__}: {e}); give the "
                        "--out of a finished run, or of a comparison")
    return path


def main():
    """Write the page of a run or of a comparison, and say where it is."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="the --out of a finished run, or of a comparison")
    path = write_report(parser.parse_args().folder)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB in one file; open it in a browser.")


if __name__ == "__main__":
    fail_in_one_line(main)
