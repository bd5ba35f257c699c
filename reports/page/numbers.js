'use strict';
// The numbers of the page, from the report and what is chosen. Nothing here touches the page.
// Detections (d) are in falling order of score; boxes (t) are the annotated ones without crowds; see content.py.

function unpack(text, Type) {
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < characters.length; i++) bytes[i] = characters.charCodeAt(i);
  return new Type(bytes.buffer);
}

function unpackBoxes(packed) {
  return {image: unpack(packed.image, Uint32Array), label: unpack(packed.label, Uint16Array),
    box: unpack(packed.box, Uint16Array), size: unpack(packed.size, Uint8Array)};
}

/** The report of the file with arrays for what is packed, outcomes by name, and each image's items. */
function unpackReport(content) {
  const d = content.detections;
  const report = {...content, names: content.images.names, imageSizes: unpack(content.images.sizes, Uint32Array),
    outcome: Object.fromEntries(content.outcomes.map((name, i) => [name, i])),
    truth: unpackBoxes(content.truth), crowds: unpackBoxes(content.crowds),
    detections: {...unpackBoxes(d), score: unpack(d.score, Float64Array), outcome: unpack(d.outcome, Uint8Array),
      about: unpack(d.about, Int32Array), located: unpack(d.located, Int32Array),
      onCrowd: unpack(d.on_crowd, Uint8Array)}};
  report.lowerNames = report.names.map(name => name.toLowerCase());
  for (const boxes of [report.detections, report.truth, report.crowds]) {
    boxes.ofImage = report.names.map(() => []);
    boxes.image.forEach((image, i) => boxes.ofImage[image].push(i));
  }
  return report;
}

/** How many detections have at least this score. */
function countFrom(scores, threshold) {
  let low = 0, high = scores.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle] >= threshold) low = middle + 1; else high = middle;
  }
  return low;
}

/** What is chosen, applied. A detection has the size of the box that it finds, else its own.
 * shown: number of detections from the threshold on; searched: images [n]; keepDetection, keepTruth: whether class,
 * size and search let it through; reached: boxes that are not missed; locator: of each box the detection that locates
 * it, or -1; counts: by outcome. */
function applied(report, state) {
  const {detections: d, truth: t, outcome} = report, word = state.search.trim().toLowerCase();
  const searched = report.lowerNames.map(name => name.includes(word));
  const shown = countFrom(d.score, state.threshold), counts = report.outcomes.map(() => 0);
  const keepTruth = new Uint8Array(t.label.length), keepDetection = new Uint8Array(d.label.length);
  const reached = new Uint8Array(t.label.length), locator = new Int32Array(t.label.length).fill(-1);
  const ofSize = size => state.size < 0 || size === state.size;
  const ofLabel = label => state.label < 0 || label === state.label;
  const mistakenClass = i => d.outcome[i] === outcome.classification || d.outcome[i] === outcome.both;
  const sizeOf = i => d.outcome[i] === outcome.found ? t.size[d.about[i]] : d.size[i];
  for (let i = 0; i < d.label.length; i++) {
    keepDetection[i] = searched[d.image[i]] && ofSize(sizeOf(i))
      && (ofLabel(d.label[i]) || (mistakenClass(i) && ofLabel(t.label[d.about[i]])));
  }
  for (let i = 0; i < shown; i++) {
    const kind = d.outcome[i];
    if (kind === outcome.found || kind === outcome.localization || kind === outcome.classification) {
      reached[d.about[i]] = 1;
    }
    if (d.located[i] >= 0) locator[d.located[i]] = i;
    counts[kind] += keepDetection[i];
  }
  for (let g = 0; g < t.label.length; g++) {
    keepTruth[g] = searched[t.image[g]] && ofSize(t.size[g]) && ofLabel(t.label[g]);
    counts[outcome.missed] += keepTruth[g] && !reached[g];
  }
  return {shown, searched, keepDetection, keepTruth, reached, locator, counts, ofSize, ofLabel};
}

/** The confusion matrix, (K + 1)² numbers by rows: truth, then nothing annotated; columns: detected as, then missed.
 * An entry has the size of its annotated box, or of the detection where there is none; a chosen class leaves its row
 * and its column. */
function confusionMatrix(report, view) {
  const {detections: d, truth: t} = report, side = report.classes.length + 1;
  const matrix = new Uint32Array(side * side);
  const add = (row, column, size) => {
    if (view.ofSize(size) && (view.ofLabel(row) || view.ofLabel(column))) matrix[row * side + column]++;
  };
  for (let i = 0; i < view.shown; i++) {
    const box = d.located[i];
    if (!view.searched[d.image[i]]) continue;
    if (box >= 0) add(t.label[box], d.label[i], t.size[box]);
    else if (!d.onCrowd[i]) add(side - 1, d.label[i], d.size[i]);
  }
  for (let g = 0; g < t.label.length; g++) {
    if (view.searched[t.image[g]] && view.locator[g] < 0) add(t.label[g], side - 1, t.size[g]);
  }
  return matrix;
}

/** Per class: boxes, detections kept and boxes found from the threshold on. */
function classCounts(report, view) {
  const {detections: d, truth: t, outcome} = report;
  const rows = report.classes.map(() => ({boxes: 0, kept: 0, found: 0}));
  for (let g = 0; g < t.label.length; g++) rows[t.label[g]].boxes += view.keepTruth[g];
  for (let i = 0; i < view.shown; i++) {
    if (!view.keepDetection[i] || !view.ofLabel(d.label[i]) || d.outcome[i] === outcome.ignored) continue;
    rows[d.label[i]].kept++;
    rows[d.label[i]].found += d.outcome[i] === outcome.found;
  }
  return rows;
}

/** Precision, recall and F1 at IoU 0.5; null where there is nothing to divide by. */
function quality({boxes, kept, found}) {
  return {precision: kept ? found / kept : null, recall: boxes ? found / boxes : null,
    f1: boxes + kept ? 2 * found / (boxes + kept) : null};
}

/** Precision and recall after each detection of the chosen class, or of all together, as the threshold falls. Only
 * the last of equal scores is a point that a threshold can reach. */
function precisionRecall(report, view) {
  const {detections: d, outcome} = report;
  const boxes = view.keepTruth.reduce((sum, kept) => sum + kept, 0), points = [];
  let kept = 0, found = 0;
  for (let i = 0; i < d.label.length; i++) {
    if (!view.keepDetection[i] || !view.ofLabel(d.label[i]) || d.outcome[i] === outcome.ignored) continue;
    kept++;
    found += d.outcome[i] === outcome.found;
    if (points.length && points[points.length - 1].score === d.score[i]) points.pop();
    points.push({score: d.score[i], precision: found / kept, recall: boxes ? found / boxes : 0});
  }
  return boxes ? points : [];
}

/** Whether a detection, a box is what the chosen kind of error or cell of the matrix is about. */
function emphasis(report, state, view) {
  const {detections: d, truth: t, outcome} = report, none = report.classes.length;
  if (state.cell) {
    const [row, column] = state.cell;
    const located = i => (d.located[i] >= 0 ? t.label[d.located[i]] : d.onCrowd[i] ? -1 : none);
    return {
      detection: i => d.label[i] === column && located(i) === row
        && view.ofSize(row < none ? t.size[d.located[i]] : d.size[i]),
      truth: g => t.label[g] === row && view.ofSize(t.size[g])
        && (view.locator[g] < 0 ? none : d.label[view.locator[g]]) === column};
  }
  if (state.kind < 0) return {detection: i => view.keepDetection[i], truth: g => view.keepTruth[g]};
  return {detection: i => view.keepDetection[i] && d.outcome[i] === state.kind,
    truth: g => state.kind === outcome.missed && view.keepTruth[g] && !view.reached[g]};
}

/** The images that have something of what is chosen, in the chosen order. A missed box costs 1, a wrong detection its
 * score. */
function sortedImages(report, state, view, emphasised) {
  const {detections: d, truth: t, outcome} = report, images = report.names.length;
  const cost = new Float64Array(images), surest = new Float64Array(images), present = new Uint8Array(images);
  const specific = state.kind >= 0 || state.cell;
  for (let i = 0; i < view.shown; i++) {
    if (!view.searched[d.image[i]] || !emphasised.detection(i)) continue;
    present[d.image[i]] = 1;
    if (!specific && d.outcome[i] > outcome.missed) continue;  // found, ignored
    cost[d.image[i]] += d.score[i];
    surest[d.image[i]] = Math.max(surest[d.image[i]], d.score[i]);
  }
  for (let g = 0; g < t.label.length; g++) {
    if (!view.searched[t.image[g]] || !emphasised.truth(g)) continue;
    present[t.image[g]] = 1;
    cost[t.image[g]] += !view.reached[g];
  }
  const all = !specific && state.label < 0 && state.size < 0, order = [];
  for (let i = 0; i < images; i++) if (view.searched[i] && (all || present[i])) order.push(i);
  const by = {cost: (a, b) => cost[b] - cost[a], confidence: (a, b) => surest[b] - surest[a] || cost[b] - cost[a],
    name: (a, b) => (report.names[a] < report.names[b] ? -1 : 1)};
  return order.sort((a, b) => by[state.sort](a, b) || a - b);
}
