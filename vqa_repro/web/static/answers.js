"use strict";
// What each run answered: cards with answers, notes and attention.

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
  const { title, folder, data, answers, accuracy, prior, unfinished } = server.runs[index];
  const made = element(
    "article",
    { className: "run", "aria-labelledby": `run-${index}` },
    element("h3", { id: `run-${index}` }, title),
    element("p", { className: "folder" }, folder),
    bars(prediction.answers),
    element("p", { className: "hint" }, text("trainedOn", { data, answers }), " ", text("limits")),
  );
  if (accuracy !== null && prior !== null) {
    const shares = { accuracy: percent(accuracy / 100), prior: percent(prior / 100) };
    made.append(element("p", { className: "hint" }, text("tested", shares)));
  }
  const note = (key, values) => made.append(element("p", { className: "note" }, text(key, values)));
  if (unfinished) note("unfinished", { epoch: unfinished[0], epochs: unfinished[1] });
  if (prediction.image_distance > 1) note("unlike", { data, times: TIMES.format(prediction.image_distance) });
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
      element("span", {}, percent(probability)),
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
  const [kind, n] = level.split(" ");
  const key = `level_${kind}`;
  return key in TEXTS[LANGUAGE] ? text(key, { n }) : level;
}
