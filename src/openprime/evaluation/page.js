// Draws the figures, which are data, in the colours of the page; hides and shows runs.
"use strict";
const hidden = new Set();

function shade(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function themed(layout) {
  const axis = {gridcolor: shade("--line"), zerolinecolor: shade("--line"), linecolor: shade("--line"), automargin: true};
  const made = {...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)"};
  made.font = {...layout.font, color: shade("--ink")};
  made.hoverlabel = {bgcolor: shade("--card"), bordercolor: shade("--line"), font: {color: shade("--ink")}};
  made.xaxis = {...axis, ...layout.xaxis};
  made.yaxis = {...axis, ...layout.yaxis};
  return made;
}

function draw(place) {
  if (!place.isConnected || place.offsetParent === null) return; // within details that are closed
  const {data, layout} = JSON.parse(place.dataset.figure);
  for (const trace of data) if (hidden.has(trace.legendgroup)) trace.visible = false;
  Plotly.react(place, data, themed(layout), {displayModeBar: false, responsive: true});
  place.dataset.drawn = "";
}

function drawAll(places) { // one after the other: the page answers meanwhile
  const queue = [...places];
  (function next() {
    const place = queue.shift();
    if (place) { draw(place); setTimeout(next, 0); }
  })();
}

const figures = (within = document) => within.querySelectorAll("[data-figure]");

document.addEventListener("toggle", event => {
  if (event.target.open) drawAll([...figures(event.target)].filter(place => !("drawn" in place.dataset)));
}, true);
document.addEventListener("click", event => {
  const button = event.target.closest("[data-run]");
  if (!button) return;
  const name = button.dataset.run;
  if (hidden.has(name)) hidden.delete(name); else hidden.add(name);
  button.setAttribute("aria-pressed", String(!hidden.has(name)));
  drawAll(document.querySelectorAll("[data-drawn]"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(document.querySelectorAll("[data-drawn]")));
drawAll(figures());
