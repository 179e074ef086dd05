// The slider and the cards. Which point is recommended where was computed by autocompress.

const slider = document.getElementById("drop");

function card(choice, isFirst) {
  const point = view.points[choice.trial];
  const badges = choice.uses.map((use) => element("span", { class: "badge" }, view.uses[use].name));
  const rows = point.facts.map(([name, before, after, ratio]) => element(
    "tr", {}, element("th", { scope: "row" }, name),
    ...[before, after, ratio].map((words) => element("td", {}, words)),
  ));
  const heads = ["", "before", "after", ""].map((words) => element("th", { scope: "col" }, words));
  const file = point.exists ? element("a", { href: point.file }, point.file) : point.file;
  return element(
    "article", { class: isFirst ? "card first" : "card", "data-trial": choice.trial },
    element("div", { class: "uses" }, ...badges,
      element("span", { class: "trial" }, `trial ${choice.trial}`)),
    element("p", { class: "ratios" }, point.ratios),
    element("p", { class: "why" }, choice.why),
    element("table", { class: "facts" }, element("thead", {}, element("tr", {}, ...heads)),
      element("tbody", {}, ...rows)),
    element("p", {}, point.done),
    ...point.notes.map((note) => element("p", { class: "note" }, note)),
    element("p", { class: "file" }, "File: ", element("code", {}, file)),
    element("details", {}, element("summary", {}, "Copy it elsewhere"),
      element("code", {}, choice.command)),
    element("button", { onclick: () => {
      choose(choice.trial);
      document.getElementById("modules").scrollIntoView({ behavior: "smooth" });
    } }, "Show what was done where"),
  );
}

function showDecision() {
  const answer = document.getElementById("answer");
  if (!view.stops.length) {
    answer.textContent = view.none;
    document.getElementById("dial").hidden = true;
    return;
  }
  const stop = view.stops[state.stop];
  answer.textContent = stop.answer;
  slider.value = state.stop;
  slider.setAttribute("aria-valuetext", stop.words);
  document.querySelector("#dial output").textContent = stop.words;
  document.getElementById("cards").replaceChildren(
    ...stop.choices.map((choice, i) => card(choice, i === 0)),
  );
}

slider.max = Math.max(view.stops.length - 1, 0);
slider.addEventListener("input", () => moveTo(Number(slider.value)));
watchers.push(showDecision);
