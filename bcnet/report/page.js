"use strict";
// Tables are sorted and figures drawn here. Without this program, every number is still in a table.

function sortBy(button) {
  const heading = button.closest("th"), table = heading.closest("table"), body = table.tBodies[0];
  const column = heading.cellIndex, down = heading.getAttribute("aria-sort") === "ascending";
  const key = (row) => row.cells[column].dataset.value ?? "";
  const order = (one, other) => {
    const a = key(one), b = key(other);
    if (a === "" || b === "") return (a === "") - (b === "");  // what is unknown comes last
    const both = a - b;
    return (Number.isNaN(both) ? a.localeCompare(b, undefined, {numeric: true}) : both) * (down ? -1 : 1);
  };
  for (const row of [...body.rows].sort(order)) body.append(row);
  for (const each of heading.parentElement.cells) each.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
}

for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sortBy(button));

function colour(role) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${role}`).trim();
}

function draw(place) {
  const {data, layout} = JSON.parse(document.getElementById(`${place.id}-data`).textContent);
  const text = colour("text"), line = colour("line"), narrow = place.clientWidth < 520;
  for (const trace of data) {
    const own = colour(trace.role);
    trace.marker = {...trace.marker, color: own};
    if (trace.type === "bar") trace.marker.line = {color: colour("page"), width: layout.barmode === "relative" ? 1 : 0};
    trace.line = {...trace.line, color: own};
    if (trace.error_y) trace.error_y.color = own;
    delete trace.role;
  }
  for (const shape of layout.shapes ?? []) shape.line.color = colour("alarm");
  for (const note of layout.annotations ?? []) note.font = {color: colour("alarm"), size: 13};
  const axis = {gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true};
  const settings = {
    ...layout,
    xaxis: {...axis, ...layout.xaxis},
    yaxis: {...axis, ...layout.yaxis},
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: "system-ui, sans-serif", size: 13, color: text},
    margin: {t: 24, r: 16, b: 48, l: narrow ? 40 : 56},
    legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0},
    hoverlabel: {align: "left", bgcolor: colour("panel"), bordercolor: line, font: {color: text}, namelength: -1},
    dragmode: narrow ? false : "zoom",
    width: place.clientWidth,
  };
  return Plotly.react(place, data, settings, {displayModeBar: false, responsive: false});
}

const places = [...document.querySelectorAll(".plot")];
const drawAll = () => Promise.all(places.map(draw));

async function start() {
  const packed = document.getElementById("plotly");
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const program = document.createElement("script");
  program.textContent = await new Response(stream).text();
  document.head.append(program);
  await drawAll();
  let width = document.documentElement.clientWidth;
  window.addEventListener("resize", () => {
    if (document.documentElement.clientWidth === width) return;  // a phone's address bar changes the height alone
    width = document.documentElement.clientWidth;
    drawAll();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  window.matchMedia("print").addEventListener("change", drawAll);
  document.documentElement.dataset.drawn = "yes";
}

start();
