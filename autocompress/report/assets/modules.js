// The foldable table of modules, and the bars of bytes and time by tower.

const bits = (v) => String(Number(v.toPrecision(3)));
const percent = (v) => `${Number((100 * v).toPrecision(3))} %`;
// Title, share of the strongest compression, and words of a value.
const AXES = {
  weight_bits: ["weight bits", (v) => 1 - Math.min(v, 16) / 16, bits],
  activation_bits: ["activation bits", (v) => 1 - Math.min(v, 16) / 16, bits],
  pruning_ratio: ["pruned", (v) => v, percent],
  rank_ratio: ["rank kept", (v) => 1 - v, percent],
  sparsity: ["zeros", (v) => v, percent],
};
const TOWERS = ["#3f83cc", "#d98a29", "#4a9e6b", "#a569bd", "#c9584c", "#3aa3a3", "#8a7f3f"];
const tree = document.getElementById("tree");
const columns = document.getElementById("columns");
const find = document.getElementById("find");
const modules = view.rows.filter((row) => row.module).length;
const closed = new Set(modules > view.few ? sums(holdsModules) : []);

function sums(keep = () => true) {
  return view.rows.filter((row, i) => !row.module && keep(row, i)).map((row) => row.name);
}

// Blocks, and towers without blocks.
function holdsModules(row, i) {
  const next = view.rows.slice(i + 1);
  const end = next.findIndex((other) => other.depth <= row.depth);
  return next.slice(0, end < 0 ? undefined : end).every((other) => other.module);
}

function cell(value, axis) {
  if (value === null) return element("td");
  const share = Math.max(0, Math.min(1, AXES[axis][1](value)));
  return element("td", { class: "heat", style: `--share:${share.toFixed(3)}` },
    AXES[axis][2](value));
}

function pairCell(before, after, words) {
  if (before === null && after === null) return element("td");
  const [first, second] = [before, after].map((v) => (v === null ? "?" : words(v)));
  return element("td", {}, after === null ? first : `${first} \u2192 ${second}`);
}

// Names of the columns, and what makes the cells of a row.
function shownColumns() {
  const trials = view.order;
  if (columns.value !== "point") {
    const axis = columns.value;
    return [trials.map((trial) => `trial ${trial}`),
      (i) => trials.map((trial) => cell(view.columns[trial][axis][i], axis)), trials];
  }
  const own = view.columns[state.trial];
  const axes = Object.keys(AXES).filter((axis) => own[axis].some((value) => value !== null));
  const known = (values) => values.some((value) => value !== null);
  // Run folders of earlier versions tell the parts of the float model alone.
  const parts = [["bytes", "size", bytesWords], ["ms", "time", msWords]].map(
    ([name, title, words]) => [name, known(own[name]) ? title : `${title} of the float model`, words],
  ).filter(([name]) => known(own[name]) || known(view.rows.map((row) => row[name])));
  const more = own.more.some((words) => words) ? ["more"] : [];
  return [
    [...axes.map((axis) => AXES[axis][0]), ...parts.map((part) => part[1]), ...more],
    (i) => [
      ...axes.map((axis) => cell(own[axis][i], axis)),
      ...parts.map(([name, , words]) => pairCell(view.rows[i][name], own[name][i], words)),
      ...more.map(() => element("td", {}, own.more[i])),
    ],
  ];
}

function firstCell(row) {
  const indent = `padding-left:${10 + 18 * row.depth + (row.module ? 16 : 0)}px`;
  if (row.module) return element("th", { scope: "row", style: indent, title: row.name }, row.label);
  const isOpen = !closed.has(row.name);
  const fold = element("button", { "aria-expanded": String(isOpen), onclick: () => {
    if (!closed.delete(row.name)) closed.add(row.name);
    showModules();
  } }, row.label);
  return element("th", { scope: "row", style: indent, title: row.name }, fold);
}

// Rows whose towers and blocks are unfolded, or that hold a module with the wanted name.
function visibleRows() {
  const wanted = find.value.trim().toLowerCase();
  const names = (row) => row.module && row.name.toLowerCase().includes(wanted);
  const open = [];
  return view.rows.map((row, i) => {
    open.length = row.depth;
    const isShown = open.every((name) => !closed.has(name));
    open.push(row.name);
    if (!wanted) return isShown;
    if (row.module) return names(row);
    let j = i + 1;
    while (j < view.rows.length && view.rows[j].depth > row.depth) {
      if (names(view.rows[j])) return true;
      j += 1;
    }
    return false;
  });
}

function showModules() {
  if (!state.trial) return;
  const [heads, cells, trials] = shownColumns();
  const visible = visibleRows();
  const head = ["module", "", ...heads].map((words, i) => element("th", {
    scope: "col", class: trials && trials[i - 2] === state.trial ? "badge" : null }, words));
  const rows = view.rows.map((row, i) => visible[i] && element(
    "tr", { class: row.module ? null : "sum" }, firstCell(row), element("td", {}, row.about),
    ...cells(i),
  )).filter(Boolean);
  tree.replaceChildren(element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows));
}

function bar(parts, total, scale) {
  const pieces = parts.map(([, value, hue]) => element("i", {
    style: `width:${(100 * value) / scale}%;background:${hue}` }));
  return element("div", { class: "bar", role: "img",
    "aria-label": parts.map(([name, value]) => `${name} ${((100 * value) / total).toFixed(0)} %`)
      .join(", ") }, ...pieces);
}

// Two bars, before and after, and a row per tower.
function spending(name, title, words, rest) {
  const own = view.columns[state.trial][name];
  const towers = view.rows.map((row, i) => [row, i]).filter(([row]) => row.depth === 0);
  const before = view.baseline[name];
  const after = view.points[state.trial][name];
  const split = (value, total) => {
    const parts = towers.map(([row, i], k) => [row.label, value(i), TOWERS[k % TOWERS.length]]);
    const known = parts.filter((part) => part[1] !== null);
    const left = total - known.reduce((sum, part) => sum + part[1], 0);
    return known.length ? [...known, [rest, Math.max(0, left), "#98a1ab"]] : null;
  };
  const [first, second] = [split((i) => view.rows[i][name], before), split((i) => own[i], after)];
  if (!first && !second) return [];
  const bars = [["before", first, before], ["after", second, after]].flatMap(
    ([label, parts, total]) => [
      element("span", {}, label),
      parts ? bar(parts, total, Math.max(before, after))
        : bar([["not known by module", total, "#98a1ab"]], total, Math.max(before, after)),
      element("span", {}, words(total)),
    ]);
  const known = [first, second].filter(Boolean);
  const hues = new Map(known.flat().map(([label, , hue]) => [label, hue]));
  const amount = (parts, label) => (parts.find((part) => part[0] === label) || [])[1];
  const rows = [...hues].map(([label, hue]) => {
    const amounts = known.map((parts) => amount(parts, label));
    const left = amounts[0] > 0 && amounts[1] !== undefined
      ? `${((100 * amounts[1]) / amounts[0]).toFixed(0)} %` : "";
    return element("tr", {},
      element("th", { scope: "row" },
        element("span", { class: "swatch", style: `background:${hue}` }), label),
      ...amounts.map((one) => element("td", {}, one === undefined ? "" : words(one))),
      ...(known[1] ? [element("td", {}, left)] : []));
  });
  const names = known[1] ? ["before", "after", "left"] : [first ? "before" : "after"];
  const heads = [title, ...names].map((w) => element("th", { scope: "col" }, w));
  const note = element("p", {}, "This run folder does not tell the parts after compression.");
  return [element("h3", {}, title), element("div", { class: "bars" }, ...bars),
    ...(second ? [] : [note]),
    element("div", { class: "wide" }, element("table", {},
      element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)))];
}

function showSpending() {
  if (!state.trial) return;
  const parts = [...spending("bytes", "Bytes", bytesWords, "rest of the file"),
    ...spending("ms", "Time", msWords, "between modules")];
  const none = element("p", {}, "This run folder does not tell bytes and time by module.");
  document.getElementById("spent").replaceChildren(...(parts.length ? parts : [none]));
}

for (const list of document.querySelectorAll("select.points")) {
  for (const trial of view.order) {
    list.append(element("option", { value: trial }, view.points[trial].label));
  }
  list.addEventListener("change", () => choose(list.value));
  watchers.push(() => { list.value = state.trial; });
}
columns.append(element("option", { value: "point" }, "all of this point"));
for (const [axis, [name]] of Object.entries(AXES)) {
  const isUsed = Object.values(view.columns).some((own) => own[axis].some((v) => v !== null));
  if (isUsed) columns.append(element("option", { value: axis }, `${name} of all points`));
}
columns.addEventListener("change", showModules);
find.addEventListener("input", showModules);
document.getElementById("unfold").addEventListener("click", () => { closed.clear(); showModules(); });
document.getElementById("fold").addEventListener("click", () => {
  for (const name of sums()) closed.add(name);
  showModules();
});
watchers.push(showModules, showSpending);
