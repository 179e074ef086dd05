// Draw the figures in the colours of the theme, those in folded parts when they are unfolded.

const NARROW = 520; // pixels below which a figure has no room for its colour bar
const CONFIG = {
  displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "toImage"],
};

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function themed(layout, width) {
  const [text, grid, line, panel] = ["text", "grid", "line", "panel"].map(colour);
  const result = structuredClone(layout);
  const clear = "rgba(0,0,0,0)";
  const axis = { gridcolor: grid, zerolinecolor: line, linecolor: line, color: text };
  result.paper_bgcolor = result.plot_bgcolor = clear;
  result.font = { ...result.font, color: text };
  result.hoverlabel = { bgcolor: panel, bordercolor: line, font: { color: text }, align: "left" };
  result.modebar = { bgcolor: clear, color: line, activecolor: text };
  for (const name of Object.keys(result)) {
    if (/^[xy]axis\d*$/.test(name)) result[name] = { ...axis, ...result[name] };
  }
  if (result.scene) {
    for (const name of ["xaxis", "yaxis", "zaxis"]) {
      result.scene[name] = { ...axis, backgroundcolor: clear, ...result.scene[name] };
    }
  }
  if (width < NARROW) {
    result.margin = { ...result.margin, l: 52, r: 8 };
    result.dragmode = false; // a finger scrolls the page
  }
  return result;
}

function traces(data, width) {
  const result = structuredClone(data);
  for (const trace of result) {
    const marker = trace.marker || {};
    if (marker.showscale && width < NARROW) marker.showscale = false;
    if (marker.colorbar) marker.colorbar.tickfont = { color: colour("text") };
  }
  return result;
}

function draw(div) {
  const figure = figures[div.dataset.figure];
  const width = div.clientWidth;
  if (!figure || !width) return;
  const config = { ...CONFIG, displayModeBar: width < NARROW ? false : "hover" };
  Plotly.react(div, traces(figure.data, width), themed(figure.layout, width), config);
  if (!div.dataset.drawn) {
    div.dataset.drawn = "yes";
    div.on("plotly_click", (event) => {
      const data = event.points[0].customdata;
      if (Array.isArray(data)) choose(data[0]);
    });
  }
  markFront(div);
}

function drawAll() {
  for (const div of document.querySelectorAll(".figure")) {
    if (!div.closest("details:not([open])")) draw(div);
  }
}

// The letters of the recommended points, a ring around the chosen one, and the limit.
function markFront(div) {
  const axis = { "front-size": "bytes", "front-latency": "ms" }[div.dataset.figure];
  if (!axis || !div.dataset.drawn || !view.stops.length) return;
  const { drop, choices } = view.stops[state.stop];
  const places = choices.map((choice) => view.points[choice.trial]);
  const letters = choices.map((c) => c.uses.map((use) => view.uses[use].letter).join(""));
  const chosen = view.points[state.trial];
  Plotly.restyle(div, {
    x: [places.map((p) => p[axis]), [chosen[axis]]],
    y: [places.map((p) => p.lost), [chosen.lost]],
    text: [letters, [""]],
    "marker.size": [letters.map((word) => 20 + 5 * (word.length - 1)), 34],
  }, [3, 4]);
  Plotly.relayout(div, { "shapes[0].y0": drop, "shapes[0].y1": drop });
}

watchers.push(() => document.querySelectorAll(".figure[data-drawn]").forEach(markFront));
for (const folded of document.querySelectorAll("details")) {
  folded.addEventListener("toggle", () => {
    if (folded.open) folded.querySelectorAll(".figure").forEach(draw);
  });
}
