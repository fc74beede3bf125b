"use strict";
// Put into report.html. pictures: {label: {place: data URI}}; references: {place: data URI}; side: the longest side of a picture here.
// judgement is that of judgement.json, but `prompts` and the lists of `each` are {place: value}, for the places that are shown here.
const { judgement, pictures, references, side } = JSON.parse(document.getElementById("data").textContent);
const { models, measures, protocol, prompts } = judgement, each = judgement.each || {};
const $ = id => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const own = (object, key) => object != null && Object.hasOwn(object, key) ? object[key] : undefined;
const known = x => typeof x === "number" && Number.isFinite(x);

// --- elements: every string from outside goes in as a text node, or as an attribute that holds no code ---

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) element.setAttribute(name, value);
  element.append(...children.filter(child => child != null));
  return element;
}
const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const colour = i => `--c: var(--m${i % 8})`;
const swatch = i => make("span", { class: "swatch", style: colour(i), "aria-hidden": "true" });
const words = text => make("span", /\p{Script=Han}/u.test(text) ? { lang: "zh-Hans" } : {}, text);  // the right forms of the characters
const term = (name, value, attributes = {}) => [make("dt", {}, name), make("dd", attributes, value)];

// --- numbers ---

const MISSING = "—";
const between = (x, low, high) => Math.max(low, Math.min(high, x));
const fixed = (x, digits) => known(x) ? x.toFixed(digits).replace("-", "−") : MISSING;
const short = x => !known(x) ? MISSING : x === 0 ? "0" : fixed(x, between(3 - Math.floor(Math.log10(Math.abs(x))), 0, 6));
const scaled = steps => x => {
  if (!known(x)) return MISSING;
  const [size, unit] = steps.find(([size]) => x >= size) || steps.at(-1);
  return String(Number((x / size).toPrecision(3))) + unit;
};
const bytes = scaled([[1e9, " GB"], [1e6, " MB"], [1e3, " kB"], [1, " B"]]);
const count = scaled([[1e9, " G"], [1e6, " M"], [1e3, " k"], [1, ""]]);
const seconds = scaled([[1, " s"], [1e-3, " ms"]]);

const lowerBetter = name => own(measures, name)?.better === "lower";
const direction = name => own(measures, name) ? `, ${lowerBetter(name) ? "lower" : "higher"} is better` : "";

// --- the head ---

document.title = `${protocol.name}: ${models.map(model => model.label).join(", ")}`;
$("title").textContent = protocol.name;
$("says").append(words(protocol.says || ""));
for (const [name, value, attributes] of [
  ["models", models.length], ["pictures a model", protocol.n], ["real pictures", protocol.n_references], ["data", protocol.data],
  ["seed", protocol.seed], ["made", (judgement.made || "").replace("T", " ").replace(/:\d\d(\.\d+)?\+00:00$/, " UTC")], ["by", judgement.version],
  ...Object.entries(judgement.eyes || {}).map(([eyes, fingerprint]) => ["eyes: " + eyes, fingerprint, { class: "mono" }]),
]) if (value != null && value !== "") $("facts").append(make("div", {}, ...term(name, String(value), attributes)));
$("reading").textContent = "How to read the intervals: the brackets hold a 95 % interval, as far as the number moves by the choice of prompts "
  + "and seeds alone. Where the intervals of two models overlap, these pictures do not tell the two apart, whatever the order of their values.";

// --- the table ---

const columns = [
  { name: "model", value: model => model.label, show: (model, i) => [swatch(i), words(model.label)] },
  ...Object.entries(measures).map(measured),
  { name: "time", notes: ["a picture"], title: "less is better", value: model => model.seconds_per_picture, unit: seconds },
  { name: "memory", notes: ["at most"], title: "less is better", value: model => model.memory_bytes, unit: bytes },
  { name: "parameters", title: "fewer first", value: model => model.parameters, unit: count },
];
function measured([name, about]) {
  const scores = models.map(model => own(model.scores, name)).map(score => score && known(score.value) ? score : null);
  const there = scores.filter(Boolean), bounded = there.filter(score => known(score.low) && known(score.high)), lower = lowerBetter(name);
  const values = [...there.flatMap(score => [score.value, score.low, score.high]), about.ceiling].filter(known);
  const from = Math.min(...values), to = Math.max(...values), ns = new Set(there.map(score => score.n).filter(known));
  // two digits of the narrowest interval are worth reading; without any, of a tenth of the largest value
  const widths = bounded.map(score => score.high - score.low).filter(width => width > 0);
  const finest = widths.length ? Math.min(...widths) : Math.max(Math.abs(from), Math.abs(to)) / 10 || 1;
  const digits = between(Math.ceil(-Math.log10(finest)) + 1, 0, 6);
  // whoever lacks an interval takes no part, and if that is the one with the best value, nobody can say which is best
  const best = there.length > 1 ? there.reduce((a, b) => (lower ? b.value < a.value : b.value > a.value) ? b : a) : null;
  const level = bounded.length === there.length && best ? there.filter(score => score.low <= best.high && score.high >= best.low) : [];
  const [short, eyes] = name.includes("(") ? [name.slice(0, name.indexOf("(")), name.slice(name.indexOf("("))] : [name, null];
  return {
    name, short, lower, title: `judge: ${about.judge}${direction(name)}`, arrow: lower ? " ↓" : " ↑", value: model => own(model.scores, name)?.value,
    notes: [eyes, ns.size === 1 ? `n = ${[...ns][0]}` : null, known(about.ceiling) ? `ceiling ${fixed(about.ceiling, digits)}` : null],
    show: (model, i) => {
      const score = scores[i];
      if (!score) return [MISSING];
      const says = !level.includes(score) ? null : level.length === 1 ? "best" : "level";
      return [
        says && make("span", { class: "says" }, says + " "),
        make(says === "best" ? "b" : "span", { class: says || "" }, fixed(score.value, digits)),
        bounded.includes(score) ? make("small", {}, `[${fixed(score.low, digits)}, ${fixed(score.high, digits)}]`) : null,
        ns.size > 1 && known(score.n) ? make("small", {}, `n = ${score.n}`) : null,
        score.reservoir < score.n ? make("small", {}, `of ${score.reservoir} drawn`) : null,  // this many features stand for all n
        bounded.length ? bar(score, x => 2 + 96 * (x - from) / (to - from || 1), about.ceiling, i) : null,
      ];
    },
  };
}
function bar(score, x, ceiling, i) {  // x: value -> 0..100, the same for the whole column
  const line = (a, b, more) => draw("line", { x1: a, x2: b, y1: 4.5, y2: 4.5, "vector-effect": "non-scaling-stroke", ...more });
  const tick = (at, more) => line(x(at), x(at), { y1: 0, y2: 9, ...more });
  return draw("svg", { class: "bar", viewBox: "0 0 100 9", preserveAspectRatio: "none", "aria-hidden": "true", style: colour(i) },
    line(0, 100, { stroke: "var(--line)" }),
    known(score.low) && known(score.high)
      ? line(x(score.low), Math.max(x(score.high), x(score.low) + 1), { stroke: "var(--c)", "stroke-width": 4, opacity: .55 }) : null,
    tick(score.value, { stroke: "var(--c)", "stroke-width": 2 }),
    known(ceiling) ? tick(ceiling, { stroke: "var(--soft)", "stroke-dasharray": "2 1.5" }) : null);
}

const FEW = 6, many = Object.keys(measures).length;  // measures come in order of importance: the first fit on a laptop, the others unfold
let sorted = { column: null, up: true }, folded = many > FEW;
const order = models.map((model, i) => i), body = make("tbody"), heads = columns.map(column => {
  const button = make("button", { type: "button", title: column.title }, column.short || column.name,
    column.arrow ? make("span", { class: "soft" }, column.arrow) : null, make("i"),
    ...(column.notes || []).filter(Boolean).map(note => make("small", {}, note)));
  button.addEventListener("click", () => sort(column));
  return make("th", { scope: "col", "data-column": column.name }, button);
});
function sort(column) {  // the better direction first, then the other
  sorted = { column, up: sorted.column === column ? !sorted.up : column.lower !== false };
  const there = x => typeof x === "string" || known(x);
  const compare = (x, y) => typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
  order.sort((a, b) => {
    const x = column.value(models[a]), y = column.value(models[b]);
    if (!there(x) || !there(y)) return there(y) - there(x) || a - b;  // who has no number stands last, either way round
    return (sorted.up ? compare(x, y) : compare(y, x)) || a - b;
  });
  rows();
}
function rows() {
  columns.forEach((column, k) => {
    if (column !== sorted.column) heads[k].removeAttribute("aria-sort");
    else heads[k].setAttribute("aria-sort", sorted.up ? "ascending" : "descending");
  });
  const cell = (column, i) => column.unit ? [column.unit(column.value(models[i]))] : column.show(models[i], i);
  const seen = (element, k) => { element.hidden = folded && k > FEW && k <= many; return element; };
  heads.forEach(seen);
  body.replaceChildren(...order.map(i => make("tr", {}, ...columns.map((column, k) =>
    seen(make(k ? "td" : "th", k ? {} : { scope: "row" }, ...cell(column, i)), k)))));
  $("fold").textContent = folded ? `all ${many} measures` : `only ${FEW} measures`;
  $("fold").setAttribute("aria-expanded", !folded);
}
$("fold").hidden = !folded;
$("fold").addEventListener("click", () => { folded = !folded; rows(); });
rows();
$("scores").querySelector(".scroll").append(make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body));
$("legend").append("↓ lower is better, ↑ higher is better; a click on a name sorts, the better first. ", ...(models.length < 2 ? [] : [
  make("b", {}, "best"), ": its interval overlaps with no other model's. ",
  make("b", {}, "level"), ": its interval overlaps with that of the best value. No interval, no verdict. ",
]), "The bars of a column share one scale", !Object.values(measures).some(about => known(about.ceiling)) ? "."
  : "; the dashed tick is the ceiling, what real pictures of the same prompts reach with this judge.");

// --- curves ---

const WIDE = 400, HIGH = 250, LEFT = 52, RIGHT = 16, TOP = 10, BOTTOM = 38;
const SHAPES = ["M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0", "M-3 -3h6v6h-6z", "M0 -4L4 3H-4z", "M0 -4.5L4.5 0L0 4.5L-4.5 0z"];

function ticks(from, to) {  // [[value, text]], a round step apart
  const rough = (to - from) / 5, power = 10 ** Math.floor(Math.log10(rough)), step = power * [1, 2, 5, 10].find(m => m * power >= rough * .999);
  const first = Math.ceil(from / step - 1e-9), digits = between(Math.ceil(-Math.log10(step) - 1e-9), 0, 9);
  return Array.from({ length: Math.floor(to / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step).map(t => [t, fixed(t, digits)]);
}
function logTicks(from, to) {
  const powers = Array.from({ length: 40 }, (_, k) => 10 ** (k - 20)), inside = t => t >= from && t <= to;
  const fine = powers.flatMap(p => [p, 2 * p, 5 * p]).filter(inside);
  return (fine.length > 6 ? powers.filter(inside) : fine).map(t => [t, String(Number(t.toPrecision(3)))]);
}
function chart(title, xName, yName, lines) {  // lines: [{label, i (its colour and shape), points: [[x, y, label?]]}]
  lines = lines.map(line => ({ ...line, points: line.points.filter(([x, y]) => known(x) && known(y)) })).filter(line => line.points.length);
  if (!lines.length) return null;
  const points = lines.flatMap(line => line.points), ends = k => [Math.min(...points.map(p => p[k])), Math.max(...points.map(p => p[k]))];
  const padded = ([low, high], pad) => { const more = (high - low) * pad || Math.abs(high) * .1 || 1; return [low - more, high + more]; };
  const [least, most] = ends(0), log = least > 0 && most >= 20 * least, f = log ? Math.log : x => x;
  const [x0, x1] = log ? [least / 1.15, most * 1.15] : padded([least, most], .06), [y0, y1] = padded(ends(1), .08);
  const X = x => LEFT + (WIDE - LEFT - RIGHT) * (f(x) - f(x0)) / (f(x1) - f(x0)), Y = y => HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * (y - y0) / (y1 - y0);
  const text = (x, y, anchor, said) => draw("text", { x, y, "text-anchor": anchor }, said);
  const rule = (x1, x2, y1, y2, stroke) => draw("line", { x1, x2, y1, y2, stroke });
  const floor = HIGH - BOTTOM;
  const svg = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${title}: ${lines.map(line => line.label).join(", ")}` },
    ...ticks(y0, y1).flatMap(([y, said]) => [rule(LEFT, WIDE - RIGHT, Y(y), Y(y), "var(--line)"), text(LEFT - 6, Y(y) + 3.5, "end", said)]),
    ...(log ? logTicks : ticks)(x0, x1).flatMap(([x, said]) => [rule(X(x), X(x), floor, floor + 4, "var(--soft)"), text(X(x), floor + 16, "middle", said)]),
    rule(LEFT, WIDE - RIGHT, floor, floor, "var(--soft)"), text((LEFT + WIDE - RIGHT) / 2, HIGH - 5, "middle", xName));
  const taken = points.map(([x, y]) => [X(x) - 5, Y(y) - 5, X(x) + 5, Y(y) + 5]);  // boxes: left, top, right, bottom
  const free = b => b[0] > LEFT && b[2] < WIDE - 1 && b[1] > 0 && b[3] < floor
    && !taken.some(t => b[0] < t[2] && b[2] > t[0] && b[1] < t[3] && b[3] > t[1]);
  for (const { label, i, points } of lines) {
    const group = draw("g", { style: colour(i), fill: "var(--c)" });
    if (points.length > 1) group.append(draw("polyline", { points: points.map(([x, y]) => `${X(x)},${Y(y)}`).join(" "), fill: "none",
      stroke: "var(--c)", "stroke-width": 1.8, "stroke-dasharray": i >= 8 ? "5 3" : undefined }));
    for (const [x, y, said] of points) {
      const name = said == null ? "" : String(said), long = 6 * name.length, tip = `${label}${name && ", " + name}: ${short(x)}, ${short(y)}`;
      group.append(draw("path", { d: SHAPES[i % 4], transform: `translate(${X(x)} ${Y(y)})` }, draw("title", {}, tip)));
      const box = name && [[7, -5], [-7 - long, -5], [7, 12], [-7 - long, 12]]  // where none of the four corners is free, the tip tells
        .map(([dx, dy]) => [X(x) + dx, Y(y) + dy - 9, X(x) + dx + long, Y(y) + dy + 1]).find(free);
      if (box) { taken.push(box); group.append(text(box[0], box[3] - 1, "start", name)); }
    }
    svg.append(group);
  }
  const key = i => draw("svg", { class: "key", viewBox: "-5 -5 10 10", style: colour(i), "aria-hidden": "true" }, draw("path", { d: SHAPES[i % 4], fill: "var(--c)" }));
  return make("figure", {}, make("h3", {}, title), make("figcaption", {}, yName), svg,
    make("div", { class: "legend soft" }, ...lines.map(({ label, i }) => make("span", {}, key(i), words(label)))));
}
const numbered = (label, k) => { const i = models.findIndex(model => model.label === label); return i < 0 ? models.length + k : i; };
const curved = [...new Set([...Object.keys(measures), ...models.flatMap(model => Object.keys(model.curves || {}))])];
const charts = [
  ...curved.map(name => chart(name, "pictures judged", name.split("(")[0] + direction(name),
    models.map((model, i) => ({ label: model.label, i, points: own(model.curves, name) || [] })))),
  ...(judgement.curves || []).map(curve => chart(curve.title, curve.x + direction(curve.x), curve.y + direction(curve.y),
    Object.entries(curve.lines).map(([label, points], k) => ({ label, i: numbered(label, k), points })))),
].filter(Boolean);
$("curves").querySelector(".charts").append(...charts);
$("curves").hidden = !charts.length;

// --- pictures side by side ---

const REAL = -1;  // instead of a model's number
const uri = (place, i) => i === REAL ? own(references, place) : own(own(pictures, models[i].label), place);
const who = i => i === REAL ? "real picture" : models[i].label;
const about = prompt => [prompt.category, known(prompt.seed) ? `seed ${prompt.seed}` : null].filter(Boolean).join(", ");
function thumb(place, i, ...caption) {
  const prompt = prompts[place], src = uri(place, i), seen = src
    ? make("button", { type: "button", class: "picture", title: prompt.text, "data-place": place, "data-model": i },
      make("img", { src, alt: `${who(i)}: ${prompt.text}` }))
    : make("div", { class: "none" }, MISSING);
  if (src) seen.addEventListener("click", () => open(seen));
  return make("figure", {}, seen, make("figcaption", {}, ...caption));
}
const real = judgement.shown.some(place => uri(place, REAL)), across = models.length + real;
const shown = judgement.shown.map(place => make("div", { class: "row", "data-category": prompts[place].category || "" },
  make("div", {}, make("p", {}, words(prompts[place].text)), make("p", { class: "soft" }, about(prompts[place]))),
  make("div", { class: "pictures" }, real ? thumb(place, REAL, "real picture") : null,
    ...models.map((model, i) => thumb(place, i, swatch(i), words(model.label))))));
$("side").querySelector("[data-list]").append(...shown);
$("side").style.setProperty("--wide", across > 5 ? "128px" : "160px");
$("side").style.setProperty("--across", [2, 4].includes(across) ? 2 : 3);  // on a phone
$("side").hidden = !shown.length;
const categories = [...new Set(shown.map(row => row.dataset.category))].filter(Boolean);
$("category").append(make("option", { value: "" }, "all"), ...categories.map(name => make("option", { value: name }, name)));
function filter() {
  for (const row of shown) row.hidden = $("category").value !== "" && row.dataset.category !== $("category").value;
  $("count").textContent = `${shown.filter(row => !row.hidden).length} of ${shown.length} prompts`;
}
$("category").addEventListener("change", filter);
filter();
$("side").querySelector(".ask").hidden = categories.length < 2;

// --- best and worst ---

const binary = new Set(Object.keys(each).filter(name =>
  Object.values(each[name]).every(values => Object.values(values).every(value => [null, 0, 1].includes(value)))));
const verdict = (name, value) => !known(value) ? MISSING : !binary.has(name) ? short(value) : (value === 1) !== lowerBetter(name) ? "right" : "wrong";
function extremes(name, label) {  // the six best and the six worst that are here, none of them twice
  const values = own(each[name], label), sign = lowerBetter(name) ? 1 : -1;
  const here = Object.keys(own(pictures, label) || {}).filter(place => known(own(values, place)));
  here.sort((a, b) => sign * (values[a] - values[b]) || a - b);
  const most = binary.has(name) ? here.filter(place => verdict(name, values[place]) === "right").length : Math.ceil(here.length / 2);
  return [here.slice(0, Math.min(6, most)), here.slice(Math.max(most, here.length - 6)).reverse()];
}
for (const name of Object.keys(each)) {
  const titles = binary.has(name) ? ["Right", "Wrong"] : ["Best", "Worst"], blocks = models.map((model, i) => {
    const value = place => binary.has(name) ? null : make("b", {}, short(each[name][model.label][place]));
    const found = extremes(name, model.label).map((places, k) => make("div", {}, make("div", { class: "soft" }, titles[k]), make("div", { class: "pictures" },
      ...(places.length ? places.map(place => thumb(place, i, value(place), words(prompts[place].text))) : ["none here"]))));
    return found.some(group => group.querySelector("figure"))
      ? make("div", { class: "extremes", "data-list": "" }, make("h3", {}, swatch(i), words(model.label)), ...found) : null;
  }).filter(Boolean);
  if (blocks.length) $("extremes").append(make("details", { "data-measure": name },
    make("summary", {}, name, make("span", { class: "soft" }, direction(name))), ...blocks));
}
$("extremes").hidden = !all("details").length;
all("details").slice(0, 1).forEach(one => { one.open = true; });
let unfolded = [];  // for the printer
addEventListener("beforeprint", () => { unfolded = all("details:not([open])"); for (const one of unfolded) one.open = true; });
addEventListener("afterprint", () => { for (const one of unfolded) one.open = false; });

// --- one picture, large ---

let list = [], at = 0;
function open(button) {
  list = all(".picture", button.closest("[data-list]")).filter(one => one.offsetParent !== null);
  at = list.indexOf(button);
  look();
  $("large").showModal();
}
function look() {
  const place = Number(list[at].dataset.place), i = Number(list[at].dataset.model), prompt = prompts[place], image = $("image");
  image.src = uri(place, i);
  image.alt = `${who(i)}: ${prompt.text}`;
  image.decode().then(() => {  // a small picture at a whole multiple of its size: its own pixels, nothing made up between them
    const longest = Math.max(image.naturalWidth, image.naturalHeight), room = Math.min(innerWidth * .8, innerHeight * .72, 640);
    const times = Math.max(1, Math.floor(room / longest));
    image.style.width = `${image.naturalWidth * times}px`;
    image.style.imageRendering = times > 1 ? "pixelated" : "auto";
  }, () => {});  // the next picture came before this one was there
  $("prompt").replaceChildren(words(prompt.text));
  $("about").replaceChildren(...(i === REAL ? [] : [swatch(i)]), words(who(i)), about(prompt) && `, ${about(prompt)}`);
  $("values").replaceChildren(...Object.keys(each).filter(name => i !== REAL && own(each[name], who(i)))
    .flatMap(name => term(name, verdict(name, own(each[name][who(i)], place)))));
  $("at").textContent = `${at + 1} of ${list.length}`;
  $("previous").disabled = $("next").disabled = list.length < 2;
}
function move(step) {
  at = (at + step + list.length) % list.length;
  look();
}
$("previous").addEventListener("click", () => move(-1));
$("next").addEventListener("click", () => move(1));
$("close").addEventListener("click", () => $("large").close());
$("large").addEventListener("click", event => { if (event.target === $("large")) $("large").close(); });  // beside the window
$("large").addEventListener("keydown", event => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) { event.preventDefault(); move(step); }
});
$("large").addEventListener("close", () => list[at].focus());

// --- how it was made ---

const plain = object => Object.entries(object || {}).flatMap(([name, value]) => term(name, typeof value === "string" ? value : JSON.stringify(value)));
$("made").querySelector(".made").append(...models.map((model, i) => make("div", {}, make("h3", {}, swatch(i), words(model.label)), make("dl", {},
  ...(model.name && model.name !== model.label ? term("name", model.name) : []), ...plain(model.sampling),
  ...plain({ "all pictures": seconds(model.seconds), parameters: count(model.parameters) }),
  ...Object.entries(model.fingerprints || {}).flatMap(([part, fingerprint]) => term(part, String(fingerprint), { class: "mono" }))))));
const quoted = word => /^[\w.\/:=@,+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
const judges = [...new Set(Object.values(measures).map(measure => measure.judge).filter(Boolean))];
const options = { protocol: protocol.name, data: protocol.data === protocol.name ? null : protocol.data, judges: judges.join(","), n: protocol.n, seed: protocol.seed };
$("command").textContent = judgement.command || ["triptych judge", ...new Set(models.map(model => quoted(String(model.name || model.label)))),
  ...Object.entries(options).filter(([, value]) => value != null && value !== "").map(([name, value]) => `--${name} ${quoted(String(value))}`), "--report DIR"].join(" ");
const pictured = [...Object.values(pictures), references].some(group => Object.keys(group).length);
$("repeat").textContent = "With the same version, models and eyes (their fingerprints are above), and the sampling settings of each model. "
  + "All numbers, those of every single picture too, are in judgement.json beside this page."
  + (pictured ? ` No picture is shown here with more than ${side} pixels a side.` : "");
$("parts").append(...all("main > section:not([hidden])").map(section => make("a", { href: "#" + section.id }, section.querySelector("h2").textContent)));
