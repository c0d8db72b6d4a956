// Browse the answers in errors.json. Whatever comes from it is set as text, so that hostile text is read and not run.
const get = (id) => document.getElementById(id);
const make = (tag, text = "", kind = "") => Object.assign(document.createElement(tag), { textContent: text, className: kind });
let data, rows = [], at = 0;

function pick(select, names) {
  for (const name of names) select.append(make("option", name));
}

function filter() {
  const runs = data.runs, a = runs[get("run").value], b = runs[get("other").value];
  const words = get("words").value.toLowerCase();
  get("pair").disabled = !b;
  rows = data.questions.map((question, index) => ({ question, index, a: a[index], b: b && b[index] })).filter((row) => {
    const ours = row.a.kind === "right", theirs = row.b && row.b.kind === "right";
    const pair = ours ? (theirs ? "both right" : "only A") : theirs ? "only B" : "neither";
    const text = [row.question.question, ...row.question.choices, row.a.reply, row.b ? row.b.reply : ""].join("\n");
    return (get("task").value === "all" || row.question.task === get("task").value)
      && (get("kind").value === "all" || row.a.kind === get("kind").value)
      && (!b || get("pair").value === "all" || pair === get("pair").value)
      && text.toLowerCase().includes(words);
  });
  if (get("order").value !== "as asked") rows.sort((x, y) => y.a.reply.length - x.a.reply.length);
  show(0);
}

function show(place) {
  at = place;
  get("place").textContent = rows.length ? `${at + 1} of ${rows.length}` : "0 of 0";
  get("previous").disabled = at <= 0;
  get("next").disabled = at >= rows.length - 1;
  const card = get("card");
  card.replaceChildren();
  if (!rows.length) return card.append(make("p", "No question is left; choose another task or kind."));
  const { question, a, b } = rows[at];
  const replies = [[get("run").value, a], ...(b ? [[get("other").value, b]] : [])];
  card.append(make("small", `${question.task}, question ${question.id}`), make("p", question.question, "right"));
  if (question.sound) card.append(Object.assign(document.createElement("audio"), { controls: true, src: question.sound }));
  else card.append(make("p", "The clip cannot be played here."));
  const list = document.createElement("ul");
  for (const choice of question.choices) {
    const said = replies.filter(([, reply]) => reply.choice === choice).map(([name]) => `\u25cf ${name}`);
    const gold = choice === question.answer;
    list.append(make("li", [choice, ...(gold ? ["\u2714 right answer"] : []), ...said].join("   "), gold ? "right" : ""));
  }
  card.append(list);
  for (const [name, reply] of replies) {
    card.append(make("p", `${name}: ${reply.kind}${reply.cause ? `, perhaps ${reply.cause}` : ""}`), make("pre", reply.reply));
  }
}

(async () => {
  data = await (await fetch("errors.json")).json();
  const names = Object.keys(data.runs);
  get("made").textContent = data.made;
  pick(get("run"), names);
  pick(get("other"), ["none", ...names]);
  pick(get("task"), [...new Set(data.questions.map((question) => question.task))]);
  for (const id of ["run", "other", "pair", "task", "kind", "order", "words"]) get(id).addEventListener("input", filter);
  get("filters").addEventListener("submit", (event) => event.preventDefault());
  get("previous").addEventListener("click", () => show(at - 1));
  get("next").addEventListener("click", () => show(at + 1));
  filter();
})();
