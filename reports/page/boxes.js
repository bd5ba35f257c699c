// An image with its boxes, as SVG in pixels of the original image.

const SVG = 'http://www.w3.org/2000/svg';
const OUTCOME_TEXTS = {classification: 'wrong class', localization: 'poor box', both: 'wrong class and poor box',
  duplicate: 'duplicate', background: 'background', missed: 'missed', found: 'found', ignored: 'on a crowd'};

/** A new element with attributes; children are elements or texts, never markup. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== false) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Left, upper edge, width and height in px. */
function pixelBox(report, boxes, i) {
  const [width, height] = imageSize(report, boxes.image[i]), [left, top, right, bottom] = boxes.box.subarray(4 * i);
  return {x: left / 65535 * width, y: top / 65535 * height,
    width: (right - left) / 65535 * width, height: (bottom - top) / 65535 * height};
}

function imageSize(report, image) {
  return report.imageSizes.subarray(2 * image, 2 * image + 2);
}

/** What is drawn on an image: rows {kind: 'detection' | 'truth' | 'crowd', i, label, outcome, score, strong}; the most
 * important first: what is emphasised, then by score. */
function itemsOf(report, state, view, emphasised, image) {
  const {detections: d, truth: t, crowds, outcome} = report, items = [];
  for (const i of d.ofImage[image]) {
    if (i >= view.shown) break;
    const strong = Boolean(emphasised.detection(i));
    if (!strong && !view.keepDetection[i]) continue;
    items.push({kind: 'detection', boxes: d, i, label: d.label[i], outcome: d.outcome[i], score: d.score[i], strong});
  }
  for (const i of state.truth ? t.ofImage[image] : []) {
    const strong = Boolean(emphasised.truth(i));
    if (!strong && !view.keepTruth[i]) continue;
    items.push({kind: 'truth', boxes: t, i, label: t.label[i], outcome: view.reached[i] ? -1 : outcome.missed, strong});
  }
  for (const i of state.truth ? crowds.ofImage[image] : []) {
    if (view.ofLabel(crowds.label[i])) {
      items.push({kind: 'crowd', boxes: crowds, i, label: crowds.label[i], outcome: -1, strong: false});
    }
  }
  return items.sort((a, b) => isWrong(report, b) - isWrong(report, a) || b.strong - a.strong);
}

function isWrong(report, item) {
  return item.outcome >= 0 && item.outcome <= report.outcome.missed;
}

function outcomeText(report, item) {
  return OUTCOME_TEXTS[report.outcomes[item.outcome]] ?? (item.kind === 'crowd' ? 'crowd' : '');
}

/** picture: address of the image, or undefined. */
function drawing(report, image, items, picture) {
  const [width, height] = imageSize(report, image);
  const svg = shape('svg', {viewBox: `0 0 ${width} ${height}`, 'aria-hidden': 'true', class: 'drawing'},
    shape('rect', {width, height, class: 'canvas'}));
  if (picture) svg.append(shape('image', {href: picture, width, height, preserveAspectRatio: 'none'}));
  const marks = items.map((item, number) => mark(report, item, number));
  svg.append(...marks.reverse());  // the most important on top
  return svg;
}

/** Ground truth is white dashes on black, dots for a crowd; detections have the colour of their class, and are wide
 * where they are wrong. */
function mark(report, item, number) {
  const box = pixelBox(report, item.boxes, item.i);
  const group = shape('g', {'data-item': number, class: [item.kind, isWrong(report, item) ? 'wrong' : 'right',
    item.strong ? 'strong' : 'weak'].join(' ')});
  if (item.kind === 'detection') group.append(shape('rect', {...box, class: 'halo'}),
    shape('rect', {...box, stroke: report.classes[item.label].colour}));
  else group.append(shape('rect', {...box, class: 'black'}), shape('rect', {...box, class: 'dashes'}));
  return group;
}

/** Adds labels to a drawing that is on the page, each at its box where there is room; the others are in the list. */
function addLabels(report, svg, items) {
  const [, , width, height] = svg.getAttribute('viewBox').split(' ').map(Number);
  const rectangle = svg.getBoundingClientRect();
  const unit = 1 / Math.min(rectangle.width / width, rectangle.height / height), line = 17 * unit, taken = [];
  items.forEach((item, number) => {
    if (item.kind === 'crowd' || (item.kind === 'truth' && !isWrong(report, item))) return;
    const outcome = isWrong(report, item) ? ` · ${outcomeText(report, item)}` : '';
    const score = item.score === undefined ? '' : ` ${item.score.toFixed(2)}`;
    const text = shape('text', {'font-size': 12 * unit},
      shortened(report.classes[item.label].name, 24) + score + outcome);
    svg.append(text);
    const box = pixelBox(report, item.boxes, item.i), wide = text.getComputedTextLength() + 8 * unit;
    const x = Math.max(0, Math.min(box.x, width - wide));
    const places = [box.y - line, box.y + box.height, box.y, box.y + box.height - line];
    const y = places.find(place => place >= 0 && place + line <= height && !taken.some(other =>
      x < other.x + other.wide && other.x < x + wide && place < other.y + line && other.y < place + line));
    text.remove();
    if (y === undefined) return;
    taken.push({x, y, wide});
    filled(text, {x: x + 4 * unit, y: y + 12.5 * unit}, []);
    svg.append(shape('g', {class: `label ${item.kind}`, 'data-item': number},
      shape('rect', {x, y, width: wide, height: line,
        fill: item.kind === 'detection' ? report.classes[item.label].colour : '#000'}), text));
  });
}

function shortened(text, length) {
  return text.length <= length ? text : text.slice(0, length - 1) + '…';
}
