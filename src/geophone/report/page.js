const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const shown = new Set(D.series);
let bands = true;

// A chart is a Vega-Lite specification whose rows lie in data.values. Drawing filters them and leaves the rest alone.
const charts = { ...D.charts };
const interval = (low, high) => (low == null || high == null ? "none" : `${low.toFixed(3)} to ${high.toFixed(3)}`);
function draw(id) {
  const spec = structuredClone(charts[id]);
  spec.data.values = spec.data.values.filter((row) => shown.has(row.series))
    .map((row) => ({ ...row, interval: interval(row.low, row.high) }));
  const banded = bands && spec.data.values.some((row) => row.low !== null);
  if (spec.layer && !banded) spec.layer = spec.layer.filter((layer) => layer.mark.type !== "area");
  const place = $(id);
  const drawn = Number(place.dataset.drawn || 0);
  return vegaEmbed(place, spec, { actions: false, renderer: "svg" }).then(() => { place.dataset.drawn = drawn + 1; });
}

// Layer by layer: measure, perturbation and level choose the rows.
const R = D.rows;
const family = (c) => D.conditions[c].family;
const layered = new Set(R.c.filter((_, i) => R.l[i] >= 0));
function options(select, entries) {
  const before = select.value;
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
  if (entries.some(([value]) => String(value) === before)) select.value = before;
}
function offerLevels() {
  const name = $("profile-perturbation").value;
  const entries = D.conditions.flatMap((c, i) => (c.perturbation === name && layered.has(i) ? [[i, c.level_label]] : []));
  options($("profile-level"), entries);
  $("profile-level").disabled = entries.length < 2;
}
function chooseProfile() {
  const m = Number($("profile-measure").value);
  const c = Number($("profile-level").value);
  const values = [];
  for (let i = 0; i < R.v.length; i++) {
    if (R.m[i] !== m || R.c[i] !== c || R.l[i] < 0) continue;
    const [layer, depth] = D.layers[R.l[i]];
    values.push({ series: D.series[R.s[i]], layer, depth, value: R.v[i], low: R.lo[i], high: R.hi[i], networks: R.k[i],
      label: D.conditions[c].label });
  }
  const { title, about } = D.metrics[m];
  $("profile-about").textContent = `${title}. ${about}`;
  if (!values.length) {
    const text = family(c) === "clean" ? "It compares perturbed with clean images: choose a perturbation." : "The table has no value of it here.";
    $("profile").replaceChildren(Object.assign(document.createElement("p"), { className: "empty", textContent: text }));
    charts.profile = null;
    return Promise.resolve();
  }
  const spec = structuredClone(D.charts.profile);
  spec.data.values = values;
  spec.title.text = `${title}: ${D.conditions[c].label}`;
  charts.profile = spec;
  return draw("profile");
}

if ($("profile")) {
  offerLevels();
  $("profile-level").value = D.profile_start;
  $("profile-measure").onchange = chooseProfile;
  $("profile-level").onchange = chooseProfile;
  $("profile-perturbation").onchange = () => { offerLevels(); $("profile-level").selectedIndex = $("profile-level").options.length - 1; chooseProfile(); };
}

// Geometry against robustness: the two measures choose the columns.
function chooseRelation() {
  const [g, r] = [$("relation-geometry").value, $("relation-robustness").value];
  const spec = structuredClone(D.charts.relation);
  spec.data.values = D.networks.filter((row) => row[g] !== null && row[r] !== null)
    .map((row) => ({ series: row.series, seed: row.seed, x: row[g], y: row[r] }));
  for (const [axis, name, tip] of [["x", g, 2], ["y", r, 3]]) {
    spec.encoding[axis].title = D.titles[name];
    spec.encoding.tooltip[tip].title = D.titles[name];
  }
  $("relation-text").textContent = D.relations[`${g}|${r}`];
  $("relation-about").textContent = D.abouts[g] + " " + D.abouts[r];
  charts.relation = spec;
  return draw("relation");
}
if ($("relation")) {
  $("relation-geometry").onchange = chooseRelation;
  $("relation-robustness").onchange = chooseRelation;
}

// Scores: one of the tables' bodies is shown.
if ($("score")) {
  $("score").onchange = () => {
    for (const body of document.querySelectorAll("[data-score]")) body.hidden = body.dataset.score !== $("score").value;
  };
}

// Legends: one set of recipes for all charts.
for (const box of document.querySelectorAll(".legend input")) {
  box.onchange = () => {
    const name = box.dataset.series;
    if (name === undefined) bands = box.checked;
    else if (box.checked) shown.add(name);
    else shown.delete(name);
    for (const twin of document.querySelectorAll(".legend input")) if (twin.dataset.series === name) twin.checked = box.checked;
    for (const id of Object.keys(charts)) if (charts[id]) draw(id);
  };
}

// Everything: search, sort, show more.
const columns = [
  ...(D.series.length > 1 ? [(i) => D.series[R.s[i]]] : []),
  (i) => D.conditions[R.c[i]].label,
  (i) => (R.l[i] < 0 ? "whole network" : D.layers[R.l[i]][0]),
  (i) => D.metrics[R.m[i]].title,
  (i) => R.v[i],
  (i) => (R.lo[i] === null ? -Infinity : R.hi[i] - R.lo[i]),
  (i) => R.k[i],
];
const texts = columns.length - 3;
const order = { column: null, down: false, count: 50 };
const digits = (x) => (x === null ? "–" : String(Number(x.toPrecision(4))).replace("-", "−"));
function fill() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = [];
  for (let i = 0; i < R.v.length; i++) {
    const text = columns.slice(0, texts).map((c) => c(i)).join(" ").toLowerCase();
    if (words.every((word) => text.includes(word))) found.push(i);
  }
  if (order.column !== null) {
    const of = columns[order.column];
    found.sort((a, b) => (of(a) < of(b) ? -1 : of(a) > of(b) ? 1 : 0) * (order.down ? -1 : 1));
  }
  const rows = found.slice(0, order.count).map((i) => {
    const row = document.createElement("tr");
    const between = R.lo[i] === null ? "–" : `${digits(R.lo[i])} to ${digits(R.hi[i])}`;
    [...columns.slice(0, texts).map((c) => c(i)), digits(R.v[i]), between, R.k[i]].forEach((text, place) => {
      const cell = row.insertCell();
      cell.textContent = text;
      if (place >= texts) cell.className = "number";
    });
    return row;
  });
  $("rows").replaceChildren(...rows);
  $("found").textContent = `${rows.length.toLocaleString("en")} of ${found.length.toLocaleString("en")} rows shown.`;
  $("more").hidden = rows.length === found.length;
}
$("search").oninput = () => { order.count = 50; fill(); };
$("more").onclick = () => { order.count += 200; fill(); };
document.querySelectorAll("#everything th button").forEach((button, place, all) => {
  button.onclick = () => {
    order.down = order.column === place && !order.down;
    order.column = place;
    all.forEach((other) => other.closest("th").removeAttribute("aria-sort"));
    button.closest("th").setAttribute("aria-sort", order.down ? "descending" : "ascending");
    fill();
  };
});

const waiting = Object.keys(charts).filter((id) => id !== "profile" && id !== "relation").map(draw);
if ($("profile")) waiting.push(chooseProfile());
if ($("relation")) waiting.push(chooseRelation());
fill();
Promise.all(waiting).then(() => { document.documentElement.dataset.ready = "yes"; });
