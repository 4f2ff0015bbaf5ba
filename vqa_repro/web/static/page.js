"use strict";
// The page of vqa_repro.serve: choose an image, ask, see each run's answers and attention.

const TEXTS = /* texts */ {};
const LANGUAGE = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
const digits = { minimumFractionDigits: 1, maximumFractionDigits: 1 };
const TIMES = new Intl.NumberFormat(LANGUAGE, digits);
const PERCENT = new Intl.NumberFormat(LANGUAGE, { style: "percent", ...digits });

function text(key, values = {}) {
  return TEXTS[LANGUAGE][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

const $ = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// ---------------------------------------------------------------- the server

// The token leaves the address bar, and with it the history and what is shown to others.
const token = new URLSearchParams(location.search).get("token") ?? sessionStorage.getItem("token");
if (token) sessionStorage.setItem("token", token);
history.replaceState(null, "", "/");

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { Authorization: `Bearer ${token}` } });
  } catch {
    throw new Error(text("unreachable"));
  }
  if (response.ok) return response;
  if (response.status === 403) throw new Error(text("forbidden"));
  const error = new Error(text("refused", { why: (await response.json()).error }));
  error.gone = response.status === 410;
  throw error;
}

async function post(path, body) {
  return (await call(path, { method: "POST", body })).json();
}

// ---------------------------------------------------------------- choosing an image

let server = null; // the response to GET /runs
let picture = null; // {blob, url, sample, uploaded: promise of its key on the server}
let asked = 0; // the newest question; answers to older ones are dropped

function announce(status, error = "") {
  $("status").textContent = status;
  $("error").textContent = error;
}

function choose(blob, name, sample = null) {
  if (!server) return; // what went wrong is on the page
  if (blob.size > server.image_bytes) {
    const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
    const sizes = { size: megabytes(blob.size), limit: megabytes(server.image_bytes) };
    $("file").value = "";
    announce("", text("tooLarge", { name, ...sizes }));
    return;
  }
  asked += 1;
  $("answers").hidden = true;
  for (const [index, button] of $("samples").querySelectorAll("button").entries()) {
    button.setAttribute("aria-pressed", index === sample);
  }
  if (picture) URL.revokeObjectURL(picture.url);
  const chosen = { blob, url: URL.createObjectURL(blob), asked, sample };
  picture = chosen;
  $("preview").src = chosen.url;
  $("preview").alt = name;
  $("preview").hidden = false;
  announce(text("looking"));
  look(chosen);
  chosen.uploaded.then(
    () => picture === chosen && asked === chosen.asked && announce(text("ready")),
    (error) => picture === chosen && refuse(error),
  );
}

function look(chosen) {
  chosen.uploaded = post("/images", chosen.blob).then((body) => body.image);
}

function refuse(error) {
  URL.revokeObjectURL(picture.url);
  picture = null;
  $("file").value = "";
  $("preview").hidden = true;
  announce("", error.message);
}

async function showSamples() {
  $("about-samples").textContent = text(server.samples.length ? "fromGallery" : "noSamples");
  for (const [index, { question }] of server.samples.entries()) {
    const blob = await (await call(`/samples/${index}`)).blob();
    const name = text("sample", { number: index + 1, question });
    const image = element("img", { src: URL.createObjectURL(blob), alt: name });
    const button = element("button", { type: "button", title: question, "aria-pressed": "false" }, image);
    button.addEventListener("click", () => {
      $("question").value = question;
      $("file").value = "";
      choose(blob, name, index);
      if (question) ask();
    });
    $("samples").append(element("li", {}, button));
  }
}

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) choose(file, file.name);
});
// Anywhere on the page: an image dropped beside the frame would replace the page.
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  $("file").value = "";
  if (file) choose(file, file.name);
  else announce("", text("notFile"));
});

// ---------------------------------------------------------------- asking

async function ask() {
  const question = $("question").value.trim();
  if (!picture) return announce("", text("noPicture"));
  if (!question) {
    $("question").focus();
    return announce("", text("noQuestion"));
  }
  const about = picture;
  const mine = (asked += 1);
  try {
    const response = await answers(about, question);
    if (mine !== asked) return;
    show(question, response.runs);
    const best = response.runs.map((run, i) => {
      const { answer, probability } = run.answers[0];
      const of = response.runs.length > 1 ? `${server.runs[i].title}: ` : "";
      return `${of}${answer} ${PERCENT.format(probability)}`;
    });
    const milliseconds = Math.max(1, Math.round(1000 * response.seconds));
    announce(text("answered", { answers: best.join("; "), milliseconds }));
  } catch (error) {
    if (mine === asked && picture) announce("", error.message);
  }
}

async function answers(about, question) {
  const send = async () => {
    const key = await about.uploaded;
    announce(text("answering"));
    return post("/answers", JSON.stringify({ image: key, question }));
  };
  try {
    return await send();
  } catch (error) {
    if (!error.gone) throw error;
    look(about); // the server keeps the last few images only
    return send();
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});

// ---------------------------------------------------------------- what a run answered

const levelOf = new Map(); // run -> the hop or level shown last
let redraw = []; // redraw each run's map

for (const input of $("view").querySelectorAll("input")) {
  input.addEventListener("change", () => redraw.forEach((draw) => draw()));
}

function show(question, runs) {
  $("title-answers").textContent = text("answersTo", { question });
  $("true-answer").textContent = trueAnswer(question);
  redraw = [];
  $("runs").replaceChildren(...runs.map((run, index) => card(run, index, question)));
  $("answers").hidden = false;
  redraw.forEach((draw) => draw());
}

// The sample's true answer, as long as its own question is asked.
function trueAnswer(question) {
  const sample = server.samples[picture.sample];
  if (!sample || sample.question !== question) return "";
  return sample.answer === null ? text("noTrueAnswer") : text("trueAnswer", sample);
}

function card(prediction, index, question) {
  const { title, folder, data, answers } = server.runs[index];
  const made = element(
    "article",
    { className: "run", "aria-labelledby": `run-${index}` },
    element("h3", { id: `run-${index}` }, title),
    element("p", { className: "folder" }, folder),
    bars(prediction.answers),
    element("p", { className: "hint" }, text("trainedOn", { data, answers }), " ", text("limits")),
  );
  const note = (key, values) => made.append(element("p", { className: "note" }, text(key, values)));
  if (prediction.unknown_words.length) note("unknown", { words: prediction.unknown_words.join(", ") });
  if (prediction.unread_words.length) note("unread", { word: prediction.unread_words[0] });

  const levels = byLevel(prediction.attention);
  if (!levels.size) {
    made.append(element("p", { className: "hint" }, text("noMaps")));
    return made;
  }
  if (!levels.has(levelOf.get(index))) levelOf.set(index, levels.keys().next().value);
  const shown = element("div");
  const button = element("button", { type: "button", className: "save" }, text("save"));
  button.addEventListener("click", () =>
    saveFigure(shown, `${title}: ${inWords(levelOf.get(index))}`, question, prediction.answers),
  );
  const draw = () => shown.replaceChildren(...attention(levels.get(levelOf.get(index)), prediction.words));
  redraw.push(draw);
  made.append(choice(index, [...levels.keys()], draw), shown, button);
  return made;
}

function bars(answers) {
  const items = answers.map(({ answer, probability }) => {
    const bar = element("i");
    bar.style.width = `${100 * probability}%`;
    return element(
      "li",
      {},
      element("span", {}, answer),
      element("span", {}, PERCENT.format(probability)),
      element("span", { className: "bar", "aria-hidden": "true" }, bar),
    );
  });
  return element("ol", { className: "bars" }, ...items);
}

// {"hop 1": weights} or {"word/image": weights, "word/question": weights}
//   -> Map of level -> {regions: weights, words: weights}
function byLevel(maps) {
  const levels = new Map();
  for (const [name, weights] of Object.entries(maps)) {
    const [level, side] = name.split("/");
    if (!levels.has(level)) levels.set(level, {});
    levels.get(level)[side === "question" ? "words" : "regions"] = weights;
  }
  return levels;
}

function choice(index, levels, draw) {
  const made = element("fieldset", { className: "choice" }, element("legend", {}, text("looked")));
  for (const level of levels) {
    const checked = level === levelOf.get(index);
    const input = element("input", { type: "radio", name: `level-${index}`, value: level, checked });
    input.addEventListener("change", () => {
      levelOf.set(index, level);
      draw();
    });
    made.append(element("label", {}, input, element("span", {}, inWords(level))));
  }
  return made;
}

function inWords(level) {
  const [kind, number] = level.split(" ");
  const key = level === "question" ? "question level" : kind;
  return key in TEXTS[LANGUAGE] ? text(key, { number }) : level;
}

// ---------------------------------------------------------------- attention

function attention({ regions, words: overWords }, words) {
  const readout = element("p", { className: "readout" }, text("hint"));
  const made = [];
  if (regions) made.push(stage(regions, readout), scale(scaleTop(regions)));
  made.push(readout);
  if (overWords) made.push(element("h4", {}, text("overWords")), wordList(overWords, words, readout));
  return made;
}

// The image, the map over it, and over that a cell for each region to hover over and walk among.
function stage(weights, readout) {
  const image = element("img", { src: picture.url, alt: text("shown") });
  const side = Math.round(Math.sqrt(weights.length));
  const smooth = document.querySelector("[name=view]:checked").value === "smooth";
  const made = element("div", { className: "stage" }, image, heat(weights, side, smooth));
  made.append(cells(weights, side, readout));
  const fit = () => {
    const ratio = image.naturalWidth / image.naturalHeight || 1;
    made.style.aspectRatio = ratio;
    made.style.width = `min(100%, ${70 * ratio}vh)`;
  };
  image.addEventListener("load", fit);
  fit();
  return made;
}

// viridis: perceptually uniform and readable with colour-blindness.
const VIRIDIS = [
  [68, 1, 84], [72, 24, 106], [71, 45, 123], [66, 64, 134],
  [59, 82, 139], [51, 99, 141], [44, 114, 142], [38, 130, 142],
  [33, 145, 140], [31, 160, 136], [40, 174, 128], [63, 188, 115],
  [94, 201, 98], [132, 212, 75], [173, 220, 48], [216, 226, 25],
  [253, 231, 37],
];
const OPACITY = 0.6;

// (r, g, b) of a share from 0 to 1.
function colour(share) {
  const at = Math.min(1, share) * (VIRIDIS.length - 1);
  const low = Math.min(VIRIDIS.length - 2, Math.floor(at));
  return VIRIDIS[low].map((value, i) => value + (at - low) * (VIRIDIS[low + 1][i] - value));
}

// The top of the colour scale, in multiples of the uniform weight: at least 4, so that a nearly
// uniform map looks uniform.
function scaleTop(weights) {
  return Math.max(4, Math.ceil(weights.length * Math.max(...weights)));
}

function paint(shares, width, height) {
  const canvas = element("canvas", { width, height, "aria-hidden": "true" });
  const pixels = canvas.getContext("2d").createImageData(width, height);
  shares.forEach((share, i) => pixels.data.set([...colour(share), 255], 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

const FINER = 8; // pixels of the smooth map for each region
const SMOOTHING = 0.5; // standard deviation of the Gaussian, in regions, as in reporting/figures.py

function heat(weights, side, smooth) {
  const shares = weights.map((weight) => (weight * weights.length) / scaleTop(weights));
  if (!smooth) {
    const canvas = paint(shares, side, side);
    canvas.className = "grid";
    return canvas;
  }
  const size = side * FINER;
  const row = (x) => {
    const centre = (x + 0.5) / FINER - 0.5;
    const near = [...Array(side).keys()].map((i) => Math.exp(-(((i - centre) / SMOOTHING) ** 2) / 2));
    const sum = near.reduce((a, b) => a + b);
    return near.map((value) => value / sum);
  };
  const kernel = [...Array(size).keys()].map(row); // (size, side), rows sum to 1
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const rows = [...Array(side).keys()].map((y) => shares.slice(y * side, (y + 1) * side));
  const wide = rows.map((of) => kernel.map((near) => dot(near, of))); // (side, size)
  const columns = kernel.map((_, x) => wide.map((of) => of[x])); // (size, side)
  const fine = kernel.flatMap((near) => columns.map((of) => dot(near, of)));
  return paint(fine, size, size);
}

function scale(most) {
  const steps = 64;
  const ramp = paint([...Array(steps).keys()].map((i) => i / (steps - 1)), steps, 1);
  const named = { className: "scale", role: "img", "aria-label": text("scale", { most }) };
  return element("p", named, "0", ramp, `${most} ${text("uniform")}`);
}

// A grid as in the ARIA Authoring Practices: one stop for Tab, the arrow keys go on from there.
function cells(weights, side, readout) {
  const made = element("div", {
    className: "cells",
    role: "grid",
    "aria-label": text("map", { rows: side }),
  });
  made.style.gridTemplate = `repeat(${side}, 1fr) / repeat(${side}, 1fr)`;
  const all = weights.map((weight, i) => {
    const at = { row: Math.floor(i / side) + 1, column: (i % side) + 1 };
    const values = { ...at, weight: PERCENT.format(weight), times: TIMES.format(weight * weights.length) };
    const cell = element("span", { role: "gridcell", tabIndex: -1 });
    cell.setAttribute("aria-label", text("cell", values));
    const read = () => (readout.textContent = text("readCell", values));
    cell.addEventListener("pointerenter", read);
    cell.addEventListener("focus", read);
    return cell;
  });
  all[weights.indexOf(Math.max(...weights))].tabIndex = 0;
  for (let start = 0; start < all.length; start += side) {
    const row = element("div", { role: "row" }, ...all.slice(start, start + side));
    row.setAttribute("aria-label", text("row", { row: start / side + 1 }));
    made.append(row);
  }
  made.addEventListener("keydown", (event) => {
    const i = all.indexOf(event.target);
    const [row, column] = [Math.floor(i / side), i % side];
    const to = {
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      Home: [event.ctrlKey ? 0 : row, 0],
      End: [event.ctrlKey ? side - 1 : row, side - 1],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    const [y, x] = to.map((value) => Math.min(side - 1, Math.max(0, value)));
    all[i].tabIndex = -1;
    all[y * side + x].tabIndex = 0;
    all[y * side + x].focus();
  });
  return made;
}

function wordList(weights, words, readout) {
  const most = Math.max(...weights);
  const items = words.map((word, i) => {
    const weight = PERCENT.format(weights[i]);
    const item = element("li", {}, word, " ", element("small", {}, weight));
    item.style.background = `rgb(var(--word) / ${0.55 * (weights[i] / most)})`;
    const read = () => (readout.textContent = text("readWord", { word, weight }));
    item.addEventListener("pointerenter", read);
    return item;
  });
  return element("ul", { className: "words" }, ...items);
}

// Download the image with its map, and the question and answers below, as PNG.
function saveFigure(shown, title, question, answers) {
  const stageElement = shown.querySelector(".stage");
  const image = (stageElement ?? document).querySelector("img");
  const width = 640;
  const height = Math.round((width * image.naturalHeight) / image.naturalWidth);
  const best = answers.slice(0, 3).map((a) => `${a.answer} ${PERCENT.format(a.probability)}`);
  const lines = [title, question, best.join("   ")];
  const scaleElement = shown.querySelector(".scale");
  if (scaleElement) lines.push(scaleElement.ariaLabel);
  const canvas = element("canvas", { width, height: height + 24 * lines.length + 16 });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, width, height);
  const map = stageElement?.querySelector("canvas");
  if (map) {
    context.globalAlpha = OPACITY;
    context.imageSmoothingEnabled = map.className !== "grid";
    context.drawImage(map, 0, 0, width, height);
    context.globalAlpha = 1;
  }
  context.fillStyle = "#000";
  context.font = "16px sans-serif";
  lines.forEach((line, i) => context.fillText(line, 8, height + 24 * (i + 1), width - 16));
  canvas.toBlob((blob) => {
    const link = element("a", { href: URL.createObjectURL(blob), download: "attention.png" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

// ---------------------------------------------------------------- start

async function start() {
  document.documentElement.lang = LANGUAGE === "zh" ? "zh-Hans" : "en";
  document.title = text("title");
  for (const node of document.querySelectorAll("[data-text]")) {
    node.textContent = text(node.dataset.text);
  }
  try {
    server = await (await call("/runs")).json();
    $("question").maxLength = server.question_characters;
    await showSamples();
  } catch (error) {
    announce("", error.message);
  }
}

start();
