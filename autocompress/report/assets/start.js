// Begin: the theme, rows that choose points, files to save, and the first picture.

const THEMES = ["auto", "light", "dark"];
const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";

function applyTheme() {
  const isDark = theme === "dark" || (theme === "auto" && dark.matches);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  document.getElementById("theme").textContent = `Theme: ${theme}`;
  drawAll();
}

document.getElementById("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  applyTheme();
});
dark.addEventListener("change", applyTheme);

for (const row of document.querySelectorAll("tr[data-trial]")) {
  row.addEventListener("click", () => choose(row.dataset.trial));
}

function save(name) {
  const text = name === "front.csv" ? view.csv : JSON.stringify(read("data").front, null, 1);
  const link = element("a", { download: name, href: URL.createObjectURL(new Blob([text])) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

for (const button of document.querySelectorAll("button[data-save]")) {
  button.addEventListener("click", () => save(button.dataset.save));
}

moveTo(view.start);
applyTheme();
