// The theme and the search. What is found is set as text, never as HTML.
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
root.dataset.theme = localStorage.getItem("theme") || system;
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});

const box = document.getElementById("search");
const list = document.getElementById("found");
let sections;
async function search() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  list.hidden = !words.length;
  if (!words.length) return;
  sections = sections || await (await fetch("search.json")).json();
  const hits = sections
    .map((s) => ({ ...s, head: s.heading.toLowerCase(), low: `${s.heading} ${s.text}`.toLowerCase() }))
    .filter((s) => words.every((word) => s.low.includes(word)))
    .sort((a, b) => words.some((w) => b.head.includes(w)) - words.some((w) => a.head.includes(w)))
    .slice(0, 20);
  list.replaceChildren(...hits.map((hit) => {
    const item = document.createElement("li"), link = document.createElement("a"), about = document.createElement("p");
    const at = Math.max(0, hit.text.toLowerCase().indexOf(words[0]) - 40);
    link.href = hit.page + (hit.anchor ? `#${encodeURIComponent(hit.anchor)}` : "");
    link.textContent = `${hit.title}: ${hit.heading}`;
    about.textContent = (at ? "..." : "") + hit.text.slice(at, at + 140);
    item.append(link, about);
    return item;
  }));
  if (!hits.length) list.textContent = "Nothing holds all of these words.";
}
box.addEventListener("input", search);
box.addEventListener("keydown", (event) => { if (event.key === "Escape") { box.value = ""; search(); } });
