"use strict";
// What opens under a weight: its histogram with look-up tables over it, its errors, its facts.
const views = JSON.parse(document.getElementById("views").textContent);
const SVG = "http://www.w3.org/2000/svg";
const make = (tag, parent, set = {}, text = null) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, to] of Object.entries(set)) made.setAttribute(name, to);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
};
const put = (tag, parent, text = null) => {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
};
const told = (x) => x === 0 ? "0" : Math.abs(x) < 1e-3 || Math.abs(x) >= 1e4
  ? x.toExponential(1) : String(Number(x.toPrecision(3)));
const WIDTH = 560, LEFT = 10, RIGHT = 550;

function ticks(low, high) {
  const raw = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= raw);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high; at++) found.push(at * step);
  return found;
}

function histogram(parent, title, note, bins, color, tables = []) {
  const figure = put("figure", parent);
  put("figcaption", figure, title);
  const strip = tables.length ? Math.max(tables.length * 7, 14) + 12 : 0, top = 150;
  const svg = make("svg", figure, { viewBox: `0 0 ${WIDTH} ${top + strip + 26}`, role: "img" });
  make("title", svg, {}, title);
  const x = (v) => LEFT + (v - bins.low) / (bins.high - bins.low) * (RIGHT - LEFT);
  const most = Math.max(...bins.counts, 1), wide = (RIGHT - LEFT) / bins.counts.length;
  for (const [at, count] of bins.counts.entries()) {
    const high = count ? Math.max(1, count / most * (top - 8)) : 0;
    make("rect", svg, { x: LEFT + at * wide, y: top - high, width: Math.max(0.5, wide - 0.8),
      height: high, fill: `var(${color})` });
  }
  for (const [at, table] of tables.entries()) {
    const y = top + 8 + at * 7, high = tables.length > 1 ? 5.5 : 14;
    for (const entry of table) {
      if (entry < bins.low || entry > bins.high) continue;
      if (tables.length === 1)
        make("line", svg, { x1: x(entry), x2: x(entry), y1: 4, y2: top, stroke: "var(--gold)",
          "stroke-opacity": table.length > 40 ? 0.18 : 0.5, "stroke-dasharray": "3 3" });
      make("line", svg, { x1: x(entry), x2: x(entry), y1: y, y2: y + high, stroke: "var(--gold)",
        "stroke-width": table.length > 40 ? 1 : 2 });
    }
  }
  make("line", svg, { x1: LEFT, x2: RIGHT, y1: top, y2: top, stroke: "var(--grey)" });
  for (const at of ticks(bins.low, bins.high)) {
    make("line", svg, { x1: x(at), x2: x(at), y1: top + strip, y2: top + strip + 5,
      stroke: "var(--grey)" });
    make("text", svg, { x: Math.min(Math.max(x(at), 18), WIDTH - 22), y: top + strip + 19,
      "text-anchor": "middle" }, told(at));
  }
  const [below, above] = bins.outside;
  const out = below + above ? ` ${below} lie below and ${above} above what is drawn.` : "";
  put("p", figure, note + out).className = "soft";
}

function open(button, row) {
  const data = views[Number(button.dataset.at)];
  const opening = document.createElement("tr");
  opening.className = "opening";
  const cell = put("td", opening);
  cell.colSpan = row.cells.length;
  const box = put("div", cell);
  box.className = "opened";
  const view = data.view;
  if (view) {
    const some = view.looked_at < data.elements
      ? `${view.looked_at.toLocaleString("en")} of ${data.elements.toLocaleString("en")} weights, of evenly spaced rows.`
      : "All weights.";
    const shown = view.tables.length;
    const luts = view.n_tables === 1 ? "The look-up table in gold."
      : shown === view.n_tables ? `All ${shown} look-up tables in gold, one a line.`
      : `${shown} of ${view.n_tables.toLocaleString("en")} look-up tables in gold, one a line.`;
    histogram(box, "Weights, and entries of look-up tables", `${some} ${luts}`, view.weights, "--bins", view.tables);
    if (view.errors)
      histogram(box, "Errors: palettized less dense", some, view.errors, "--soft");
    else put("p", put("figure", box), "Every weight that was looked at is exact.");
  } else put("p", box, "Nothing was drawn of this weight.");
  const facts = put("dl", put("figure", box));
  for (const [name, text] of data.facts) {
    put("dt", facts, name);
    put("dd", facts, text);
  }
  row.after(opening);
}

for (const button of document.querySelectorAll("button.open"))
  button.addEventListener("click", () => {
    const row = button.closest("tr"), isOpen = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) row.nextElementSibling.remove();
    else open(button, row);
  });
for (const link of document.querySelectorAll("a[data-open]"))
  link.addEventListener("click", () => {
    const button = document.querySelector(`button.open[data-at="${link.dataset.open}"]`);
    button.closest("tr").hidden = false;
    if (button.getAttribute("aria-expanded") !== "true") button.click();
  });
