"use strict";
// Without this script the page shows everything one below the other; with it, one leaf at a time.

for (const control of document.querySelectorAll(".language, .chooser, .turn, .mark, .tools, .filter")) {
  control.hidden = false;
}

// What is kept over a refresh (session) or for good (local). Browsers may refuse either.
function stored(storage, key) {
  try {
    return JSON.parse(window[storage].getItem("vqa_repro " + key));
  } catch {
    return null;
  }
}
function store(storage, key, value) {
  try {
    window[storage].setItem("vqa_repro " + key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

// Language.
function speak(language) {
  document.documentElement.lang = language;
  document.querySelector(`.language input[value="${language}"]`).checked = true;
}
for (const input of document.querySelectorAll(".language input")) {
  input.addEventListener("change", () => {
    speak(input.value);
    store("localStorage", "language", input.value);
  });
}
speak(stored("localStorage", "language") === "zh" ? "zh"
  : stored("localStorage", "language") === "en" ? "en" : document.documentElement.lang);

// One of several parts shown.
for (const chooser of document.querySelectorAll(".chooser")) {
  const inputs = [...chooser.querySelectorAll("input")];
  const choose = () => {
    for (const input of inputs) {
      document.getElementById(input.value).classList.toggle("away", !input.checked);
    }
  };
  const before = stored("sessionStorage", inputs[0].name);
  for (const input of inputs) {
    if (input.value === before) input.checked = true;
    input.addEventListener("change", () => {
      choose();
      store("sessionStorage", input.name, input.value);
    });
  }
  choose();
}

// Leafing through those that the filter keeps: buttons, arrow keys, and 0 to 4 to mark an error.
for (const album of document.querySelectorAll(".album")) {
  const all = [...album.querySelectorAll(".leaf")];
  const [back, on] = [album.querySelector(".back"), album.querySelector(".on")];
  const [search, wrong] = album.querySelectorAll(".filter input");
  let leaves = all;
  let place = 0;
  album.turnTo = (number) => {
    place = Math.max(0, Math.min(leaves.length - 1, number));
    all.forEach((leaf) => leaf.classList.toggle("away", leaf !== leaves[place]));
    album.querySelector(".turn output").textContent = `${leaves.length ? place + 1 : 0} / ${leaves.length}`;
    back.disabled = place === 0;
    on.disabled = place >= leaves.length - 1;
    store("sessionStorage", album.id, place);
  };
  album.show = (leaf) => {
    if (!leaves.includes(leaf)) {
      search.value = "";
      wrong.checked = false;
      filter();
    }
    album.turnTo(leaves.indexOf(leaf));
  };
  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    leaves = all.filter((leaf) => words.every((word) => leaf.dataset.text.includes(word))
      && (!wrong.checked || "wrong" in leaf.dataset));
    album.querySelector(".filter output").textContent =
      leaves.length < all.length ? `${leaves.length} / ${all.length}` : "";
    album.turnTo(0);
  }
  for (const input of [search, wrong]) input.addEventListener("input", filter);
  back.addEventListener("click", () => { album.turnTo(place - 1); album.focus({preventScroll: true}); });
  on.addEventListener("click", () => { album.turnTo(place + 1); album.focus({preventScroll: true}); });
  album.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target === search) return;
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    const mark = /^[0-4]$/.test(event.key) && leaves[place] && leaves[place].querySelectorAll(".mark input");
    if (step) {
      album.turnTo(place + step);
      album.focus({preventScroll: true});
    } else if (mark && mark.length) {
      mark[event.key === "0" ? mark.length - 1 : Number(event.key) - 1].click();
    } else {
      return;
    }
    event.preventDefault();
  });
  album.tabIndex = 0;
  album.turnTo(Number(stored("sessionStorage", album.id)) || 0);
}

// The sheet of the error analysis: question id -> class.
for (const part of document.querySelectorAll(".analysis")) {
  const sheet = part.querySelector(".sheet");
  const leaves = [...part.querySelectorAll(".leaf")];
  const rows = [...sheet.querySelectorAll("tbody tr")];
  const classes = rows.map((row) => row.dataset.class);
  const questions = leaves.map((leaf) => leaf.dataset.question);
  const key = "errors " + sheet.dataset.fingerprint;
  let marks = known(stored("localStorage", key));

  function known(found) {
    const pairs = Object.entries(found && typeof found === "object" ? found : {});
    return Object.fromEntries(
      pairs.filter(([question, kind]) => questions.includes(question) && classes.includes(kind)));
  }
  function say(which) {
    for (const message of sheet.querySelectorAll(".notice")) {
      message.hidden = !message.classList.contains(which);
    }
  }
  function show() {
    for (const leaf of leaves) {
      const kind = marks[leaf.dataset.question] || "";
      leaf.querySelector(`.mark input[value="${kind}"]`).checked = true;
    }
    const all = Object.values(marks);
    for (const row of rows) {
      const count = all.filter((kind) => kind === row.dataset.class).length;
      row.querySelector(".count").textContent = count;
      row.querySelector(".share").textContent =
        all.length ? `${(100 * count / all.length).toFixed(0)}%` : "–";
    }
    sheet.querySelector(".all").textContent = `${all.length} / ${leaves.length}`;
  }
  function keep() {
    show();
    say(store("localStorage", key, marks) ? "" : "not-kept");
  }
  for (const leaf of leaves) {
    leaf.querySelector(".mark").addEventListener("change", (event) => {
      if (event.target.value) marks[leaf.dataset.question] = event.target.value;
      else delete marks[leaf.dataset.question];
      keep();
    });
  }
  sheet.querySelector(".save").addEventListener("click", () => {
    const content = {run: sheet.dataset.run, gallery: sheet.dataset.fingerprint, marks};
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2) + "\n"]));
    link.download = "error-analysis.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  sheet.querySelector("input[type=file]").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    let content = null;
    try {
      content = JSON.parse(await file.text());
    } catch {
      // reported below, as for any other file without marks
    }
    if (!content || typeof content.marks !== "object") return say("not-marks");
    if (content.gallery !== sheet.dataset.fingerprint) return say("other-run");
    marks = known(content.marks);
    keep();
  });
  sheet.querySelector(".next-unmarked").addEventListener("click", () => {
    const next = questions.findIndex((question) => !marks[question]);
    const album = part.querySelector(".album");
    album.show(leaves[Math.max(0, next)]);
    album.focus();
  });
  show();
}

// A table that is wider than the window is scrolled with the keyboard, too.
function reach() {
  for (const wide of document.querySelectorAll(".wide")) {
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
    else wide.removeAttribute("tabindex");
  }
}
window.addEventListener("resize", reach);
reach();

// On paper nothing can be opened.
const closed = [];
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    closed.push(details);
  }
});
window.addEventListener("afterprint", () => {
  while (closed.length) closed.pop().open = false;
});
