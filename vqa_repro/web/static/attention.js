"use strict";
// Attention maps over the image and the words, and saving them as a figure.

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

// Colours of the scale at even distances, and the least top of the scale (utils/palette.py).
const { colours: COLOURS, top: MIN_TOP } = /* palette */ {};
const OPACITY = 0.6;

// (r, g, b) of a share from 0 to 1.
function colour(share) {
  const at = Math.min(1, share) * (COLOURS.length - 1);
  const low = Math.min(COLOURS.length - 2, Math.floor(at));
  return COLOURS[low].map((value, i) => value + (at - low) * (COLOURS[low + 1][i] - value));
}

// The top of the colour scale, in multiples of the uniform weight.
function scaleTop(weights) {
  return Math.max(MIN_TOP, weights.length * Math.max(...weights));
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

function scale(top) {
  const most = TIMES.format(top);
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
    const values = { ...at, weight: percent(weight), times: TIMES.format(weight * weights.length) };
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
    const weight = percent(weights[i]);
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
  const best = answers.slice(0, 3).map((a) => `${a.answer} ${percent(a.probability)}`);
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
