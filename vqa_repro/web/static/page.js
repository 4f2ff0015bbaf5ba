"use strict";
// The page of vqa_repro.serve: choose a picture, ask, see each run's answers and attention.

const TEXTS = {
  en: {
    title: "Ask a picture",
    intro: "Choose a picture, type a question, and see what each model answers and where it looked.",
    picture: "Picture",
    choose: "Choose a picture",
    drop: "Or drop one here: JPEG, PNG, GIF, WebP or BMP. It is not stored.",
    samples: "Samples",
    sample: "Sample {number}: {question}",
    fromGallery: "Test pictures, in small, from the run's gallery.",
    noSamples: "The run has no gallery (gallery.json), so there are no samples.",
    question: "Question",
    ask: "Ask",
    view: "Show attention",
    smooth: "smooth",
    grid: "as regions",
    looking: "Looking at the picture; the first look can take some seconds.",
    ready: "The picture is ready. Type a question and press Enter.",
    answering: "Answering.",
    answered: "{answers} ({milliseconds} ms)",
    noPicture: "There is no picture yet: choose one, or a sample.",
    noQuestion: "The question is empty: type one, for example: what is it?",
    notFile: "What was dropped is not a file. Save the picture first, then drop it.",
    tooLarge: "{name} is too large: {size} MB. At most {limit} MB are taken.",
    unreachable: "The server does not answer. Is it running, and the tunnel open?",
    forbidden: "The server does not know this page's token. Open the URL that it printed.",
    refused: "Refused: {why}",
    answersTo: "“{question}”",
    looked: "Where it looked",
    noMaps: "This model has no attention.",
    hop: "hop {number}",
    glimpse: "glimpse {number}",
    word: "words",
    phrase: "phrases",
    "question level": "whole question",
    map: "Attention over the picture: {rows} rows of {rows} regions. The arrow keys go from one to the next.",
    row: "row {row}",
    scale: "Colours: 0% to {most}",
    cell: "{weight}, row {row}, column {column}",
    hint: "Hover over the picture or a word, or go there with Tab and the arrow keys.",
    readWord: "“{word}”: {weight} of the attention over the words",
    readCell: "row {row}, column {column}: {weight} of the attention over the picture",
    overWords: "Attention over the words",
    unknown: "In no question that it was trained on: {words}",
    unread: "Too long for the model: not read from “{word}” on",
    shown: "The picture asked about",
  },
  zh: {
    title: "向图片提问",
    intro: "选择一张图片，输入问题，查看每个模型的回答以及它关注的位置。问题请用英文。",
    picture: "图片",
    choose: "选择图片",
    drop: "或拖放到此处：JPEG、PNG、GIF、WebP 或 BMP。图片不会被保存。",
    samples: "示例",
    sample: "示例 {number}：{question}",
    fromGallery: "来自该运行图库的测试图片（缩小）。",
    noSamples: "该运行没有图库（gallery.json），因此没有示例。",
    question: "问题",
    ask: "提问",
    view: "注意力显示",
    smooth: "平滑",
    grid: "按区域",
    looking: "正在查看图片；第一次可能需要几秒。",
    ready: "图片已就绪。输入问题并按回车。",
    answering: "正在回答。",
    answered: "{answers}（{milliseconds} 毫秒）",
    noPicture: "还没有图片：请选择一张图片或示例。",
    noQuestion: "问题为空：请输入问题，例如：what is it?",
    notFile: "拖放的不是文件。请先保存图片，再拖放。",
    tooLarge: "{name} 太大：{size} MB。最多 {limit} MB。",
    unreachable: "服务器没有响应。它在运行吗？隧道打开了吗？",
    forbidden: "服务器不认识此页面的令牌。请打开它打印的网址。",
    refused: "被拒绝：{why}",
    answersTo: "“{question}”",
    looked: "关注的位置",
    noMaps: "该模型没有注意力。",
    hop: "第 {number} 跳",
    glimpse: "第 {number} 瞥",
    word: "词",
    phrase: "短语",
    "question level": "整句",
    map: "图片上的注意力：{rows} 行，每行 {rows} 个区域。用方向键移动。",
    row: "第 {row} 行",
    scale: "颜色：0% 至 {most}",
    cell: "{weight}，第 {row} 行，第 {column} 列",
    hint: "将指针移到图片或词上，或用 Tab 和方向键移动。",
    readWord: "“{word}”：占词注意力的 {weight}",
    readCell: "第 {row} 行，第 {column} 列：占图片注意力的 {weight}",
    overWords: "词上的注意力",
    unknown: "训练问题中没有出现过：{words}",
    unread: "问题太长：从“{word}”起未读",
    shown: "所问的图片",
  },
};
const LANGUAGE = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
const digits = { minimumFractionDigits: 1, maximumFractionDigits: 1 };
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

// ---------------------------------------------------------------- choosing a picture

let server = null; // what GET /runs told
let picture = null; // {blob, url, looked: promise of its name on the server}
let asked = 0; // the newest question; answers to older ones are dropped

function say(status, error = "") {
  $("status").textContent = status;
  $("error").textContent = error;
}

function choose(blob, name) {
  if (!server) return; // what went wrong is on the page
  if (blob.size > server.picture_bytes) {
    const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
    const sizes = { size: megabytes(blob.size), limit: megabytes(server.picture_bytes) };
    $("file").value = "";
    say("", text("tooLarge", { name, ...sizes }));
    return;
  }
  asked += 1;
  $("answers").hidden = true;
  if (picture) URL.revokeObjectURL(picture.url);
  const chosen = { blob, url: URL.createObjectURL(blob), asked };
  picture = chosen;
  $("preview").src = chosen.url;
  $("preview").alt = name;
  $("preview").hidden = false;
  say(text("looking"));
  look(chosen);
  chosen.looked.then(
    () => picture === chosen && asked === chosen.asked && say(text("ready")),
    (error) => picture === chosen && refuse(error),
  );
}

function look(chosen) {
  chosen.looked = post("/pictures", chosen.blob).then((told) => told.picture);
}

function refuse(error) {
  URL.revokeObjectURL(picture.url);
  picture = null;
  $("file").value = "";
  $("preview").hidden = true;
  say("", error.message);
}

async function showSamples() {
  $("about-samples").textContent = text(server.samples.length ? "fromGallery" : "noSamples");
  for (const [index, question] of server.samples.entries()) {
    const blob = await (await call(`/samples/${index}`)).blob();
    const name = text("sample", { number: index + 1, question });
    const image = element("img", { src: URL.createObjectURL(blob), alt: name });
    const button = element("button", { type: "button", title: question }, image);
    button.addEventListener("click", () => {
      $("question").value = question;
      $("file").value = "";
      choose(blob, name);
      if (question) ask();
    });
    $("samples").append(element("li", {}, button));
  }
}

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) choose(file, file.name);
});
// Anywhere on the page: a picture dropped beside the frame would replace the page.
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
  else say("", text("notFile"));
});

// ---------------------------------------------------------------- asking

async function ask() {
  const question = $("question").value.trim();
  if (!picture) return say("", text("noPicture"));
  if (!question) {
    $("question").focus();
    return say("", text("noQuestion"));
  }
  const about = picture;
  const mine = (asked += 1);
  try {
    const said = await answers(about, question);
    if (mine !== asked) return;
    show(question, said.runs);
    const best = said.runs.map((run, i) => {
      const { answer, probability } = run.answers[0];
      const of = said.runs.length > 1 ? `${server.runs[i].title}: ` : "";
      return `${of}${answer} ${PERCENT.format(probability)}`;
    });
    const milliseconds = Math.max(1, Math.round(1000 * said.seconds));
    say(text("answered", { answers: best.join("; "), milliseconds }));
  } catch (error) {
    if (mine === asked && picture) say("", error.message);
  }
}

async function answers(about, question) {
  const send = async () => {
    const name = await about.looked;
    say(text("answering"));
    return post("/answers", JSON.stringify({ picture: name, question }));
  };
  try {
    return await send();
  } catch (error) {
    if (!error.gone) throw error;
    look(about); // the server keeps the last few pictures only
    return send();
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});

// ---------------------------------------------------------------- what a run answered

const levelOf = new Map(); // run -> the hop or level shown last
let redraw = []; // draws each run's map anew

for (const input of $("view").querySelectorAll("input")) {
  input.addEventListener("change", () => redraw.forEach((draw) => draw()));
}

function show(question, runs) {
  $("title-answers").textContent = text("answersTo", { question });
  redraw = [];
  $("runs").replaceChildren(...runs.map(card));
  $("answers").hidden = false;
  redraw.forEach((draw) => draw());
}

function card(said, index) {
  const { title, folder } = server.runs[index];
  const made = element(
    "article",
    { className: "run", "aria-labelledby": `run-${index}` },
    element("h3", { id: `run-${index}` }, title),
    element("p", { className: "folder" }, folder),
    bars(said.answers),
  );
  const note = (key, values) => made.append(element("p", { className: "note" }, text(key, values)));
  if (said.unknown_words.length) note("unknown", { words: said.unknown_words.join(", ") });
  if (said.unread_words.length) note("unread", { word: said.unread_words[0] });

  const levels = byLevel(said.attention);
  if (!levels.size) {
    made.append(element("p", { className: "hint" }, text("noMaps")));
    return made;
  }
  if (!levels.has(levelOf.get(index))) levelOf.set(index, levels.keys().next().value);
  const shown = element("div");
  const draw = () => shown.replaceChildren(...attention(levels.get(levelOf.get(index)), said.words));
  redraw.push(draw);
  made.append(choice(index, [...levels.keys()], draw), shown);
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
  if (regions) made.push(stage(regions, readout), scale(Math.max(...regions)));
  made.push(readout);
  if (overWords) made.push(element("h4", {}, text("overWords")), wordList(overWords, words, readout));
  return made;
}

// The picture, the map over it, and over that a cell for each region to hover over and walk among.
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

// Low weights dim the picture; high ones colour it: red, then yellow at the largest weight.
const COLOURS = [
  [0, [10, 10, 40, 150]],
  [0.35, [90, 20, 110, 125]],
  [0.7, [225, 60, 40, 115]],
  [1, [255, 225, 60, 135]],
];

function colour(share) {
  const above = Math.max(1, COLOURS.findIndex(([at]) => at >= share));
  const [[low, from], [high, to]] = [COLOURS[above - 1], COLOURS[above]];
  const part = (share - low) / (high - low);
  return from.map((value, i) => value + part * (to[i] - value));
}

function paint(shares, width, height) {
  const canvas = element("canvas", { width, height, "aria-hidden": "true" });
  const pixels = canvas.getContext("2d").createImageData(width, height);
  shares.forEach((share, i) => pixels.data.set(colour(share), 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

const FINER = 8; // pixels of the smooth map for each region
const SMOOTHING = 0.5; // standard deviation of the Gaussian, in regions, as in plots.py

function heat(weights, side, smooth) {
  const most = Math.max(...weights);
  const shares = weights.map((weight) => weight / most);
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
  const top = Math.max(...fine);
  return paint(fine.map((share) => share / top), size, size);
}

function scale(most) {
  const steps = 64;
  const ramp = paint([...Array(steps).keys()].map((i) => i / (steps - 1)), steps, 1);
  const end = PERCENT.format(most);
  const named = { className: "scale", role: "img", "aria-label": text("scale", { most: end }) };
  return element("p", named, "0%", ramp, end);
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
    const values = { ...at, weight: PERCENT.format(weight) };
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
    say("", error.message);
  }
}

start();
