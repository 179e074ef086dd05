"use strict";
// What all scripts of the page share: its data, its state, and how parts of it are made.

const read = (name) => JSON.parse(document.getElementById(`autocompress-${name}`).textContent);
const view = read("view");
const figures = read("figures");
const state = { stop: view.start, trial: null }; // the slider's position, and the chosen point
const watchers = []; // functions that show the state

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (name === "style") made.style.cssText = value;
    else if (value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function choose(trial) {
  if (!(trial in view.points)) return; // the float model, or a trial without a file
  state.trial = String(trial);
  show();
}

function moveTo(stop) {
  state.stop = stop;
  state.trial = view.stops.length ? String(view.stops[stop].choices[0].trial) : null;
  show();
}

function show() {
  for (const watcher of watchers) watcher();
  for (const row of document.querySelectorAll("tr[data-trial]")) {
    row.classList.toggle("chosen", row.dataset.trial === state.trial);
  }
}

// Three digits, as in the tables.
function three(value) {
  if (value >= 99.95) return value.toFixed(0);
  if (value >= 9.995) return value.toFixed(1);
  return value >= 0.9995 ? value.toFixed(2) : String(Number(value.toPrecision(3)));
}

function bytesWords(size) {
  for (const [unit, factor] of [["GB", 1e9], ["MB", 1e6], ["KB", 1e3]]) {
    if (size >= 0.9995 * factor) return `${three(size / factor)} ${unit}`;
  }
  return `${Math.round(size)} B`;
}

function msWords(milliseconds) {
  if (milliseconds >= 999.5) return `${three(milliseconds / 1000)} s`;
  return `${three(milliseconds)} ms`;
}
