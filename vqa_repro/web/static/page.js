"use strict";
// The page of vqa_repro.serve: choose an image, ask, see each run's answers and attention.

const TEXTS = /* texts */ {};
const LANGUAGE = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
const digits = { minimumFractionDigits: 1, maximumFractionDigits: 1 };
const TIMES = new Intl.NumberFormat(LANGUAGE, digits);
const PERCENT = new Intl.NumberFormat(LANGUAGE, { style: "percent", ...digits });
const FINE_PERCENT = new Intl.NumberFormat(LANGUAGE, { style: "percent", minimumFractionDigits: 2 });

// To a tenth, or to a hundredth where a tenth would round to 100%; as in the report.
function percent(share) {
  return (share >= 0.9995 && share < 1 ? FINE_PERCENT : PERCENT).format(share);
}

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
// Anywhere on the page: an image dropped outside the frame would replace the page.
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
      return `${of}${answer} ${percent(probability)}`;
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
    if (picture === about) announce(text("answering")); // not after a later image's answer
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
