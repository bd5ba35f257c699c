// The page: reads what is chosen, and shows what numbers.js makes of it.

const report = unpackReport(JSON.parse(document.getElementById('report').textContent));
const at = id => document.getElementById(id);
const state = {threshold: report.score, label: -1, size: -1, kind: -1, cell: null, search: '', truth: true,
  sort: 'cost'};
const READABLE_CLASSES = 10;  // of the confusion matrix
const CURVE_POINTS = 400;
const MEANINGS = {missed: 'an annotated object without a detection near',
  classification: 'IoU of at least 0.5 with an object of another class',
  localization: 'IoU of 0.1 to 0.5 with an object of its class',
  both: 'IoU of 0.1 to 0.5 with an object of another class', background: 'detected where nothing is annotated',
  duplicate: 'a further detection of an object that is found', found: 'IoU of at least 0.5 with an object of its class'};
const openedFiles = new Map();  // addresses of the originals, by file name, once the user has opened their folder
const withSlashes = name => name.replaceAll('\\', '/'), withoutFolders = name => withSlashes(name).split('/').pop();
const namesakes = new Map();  // how many images have a name, without its folders
for (const name of report.names) {
  namesakes.set(withoutFolders(name), (namesakes.get(withoutFolders(name)) ?? 0) + 1);
}
let view, emphasised, order = [];

const percent = value => (value === null ? '–' : `${(100 * value).toFixed(1)}`);
const plural = (count, word) => `${count.toLocaleString('en')} ${word}${count === 1 ? '' : 's'}`;
const className = i => (i < report.classes.length ? report.classes[i].name : 'nothing');

// Everything that follows from what is chosen

function update() {
  view = applied(report, state);
  emphasised = emphasis(report, state, view);
  order = sortedImages(report, state, view, emphasised);
  showTiles();
  showKinds();
  showCurve();
  showMatrix();
  showGallery();
  if (at('large').open) showLarge();
}

let waiting = 0;
function updateSoon() {
  waiting ||= requestAnimationFrame(() => { waiting = 0; update(); });
}

function showTiles() {
  const rows = classCounts(report, view);
  const sum = rows.reduce((a, b) => ({boxes: a.boxes + b.boxes, kept: a.kept + b.kept, found: a.found + b.found}),
    {boxes: 0, kept: 0, found: 0});
  const {precision, recall, f1} = quality(sum);
  const tile = (name, value, note) => element('div', {class: 'tile'}, element('span', {class: 'name'}, name),
    element('strong', {'data-name': name}, value), element('span', {class: 'note'}, note));
  at('tiles').replaceChildren(
    tile('Precision', percent(precision), `${sum.found.toLocaleString('en')} of ${plural(sum.kept, 'detection')}`),
    tile('Recall', percent(recall), `${sum.found.toLocaleString('en')} of ${plural(sum.boxes, 'object')}`),
    tile('F1', percent(f1), 'in percent'));
  showClasses(rows);
}

function showKinds() {
  const {outcome} = report, kinds = ['missed', 'classification', 'localization', 'both', 'background', 'duplicate'];
  const button = (text, kind, count) => {
    const pressed = state.kind === kind && !state.cell;
    const node = element('button', {type: 'button', 'aria-pressed': pressed, 'data-kind': kind,
      title: MEANINGS[report.outcomes[kind]] ?? 'without a choice of what went wrong'},
      text, ...(count === null ? [] : [element('b', {}, count.toLocaleString('en'))]));
    node.addEventListener('click', () => choose({kind, cell: null}));
    return node;
  };
  const focused = document.activeElement?.dataset?.kind;
  at('kinds').replaceChildren(button('all images', -1, null),
    ...kinds.map(name => button(OUTCOME_TEXTS[name], outcome[name], view.counts[outcome[name]])),
    button(OUTCOME_TEXTS.found, outcome.found, view.counts[outcome.found]));
  if (focused !== undefined) at('kinds').querySelector(`[data-kind="${focused}"]`)?.focus();
}

function choose(change) {
  Object.assign(state, change);
  for (const name of ['label', 'size', 'sort', 'search']) at(name).value = state[name];
  at('truth').checked = state.truth;
  at('slider').value = at('threshold').value = state.threshold;
  update();
}

// Precision and recall

let curve = {};  // the threshold does not change it

function curvePoints() {
  const chosen = JSON.stringify([state.label, state.size, state.search]);
  if (curve.chosen !== chosen) curve = {chosen, points: precisionRecall(report, view)};
  return curve.points;
}

function showCurve() {
  const points = curvePoints(), side = 100;
  const svg = shape('svg', {viewBox: '-13 -4 119 117', role: 'img', class: 'curve',
    'aria-label': 'Precision over recall as the least score falls'});
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(shape('path', {d: `M0 ${side * (1 - tick)}H${side}M${side * tick} 0V${side}`, class: 'grid'}),
      shape('text', {x: -2, y: side * (1 - tick) + 1.5, 'text-anchor': 'end'}, `${100 * tick}`),
      shape('text', {x: side * tick, y: side + 6, 'text-anchor': 'middle'}, `${100 * tick}`));
  }
  svg.append(shape('text', {x: side / 2, y: side + 12, 'text-anchor': 'middle'}, 'recall, %'),
    shape('text', {x: 0, y: 0, transform: 'translate(-10 50) rotate(-90)', 'text-anchor': 'middle'}, 'precision, %'));
  const step = Math.max(1, Math.ceil(points.length / CURVE_POINTS));
  const drawn = points.filter((_, i) => i % step === 0 || i === points.length - 1);
  const place = point => `${(side * point.recall).toFixed(2)} ${(side * (1 - point.precision)).toFixed(2)}`;
  if (drawn.length) svg.append(shape('path', {d: `M${drawn.map(place).join('L')}`, class: 'line'}));
  const now = points.findLast(point => point.score >= state.threshold);
  if (now) svg.append(shape('circle', {cx: side * now.recall, cy: side * (1 - now.precision), r: 2.4}));
  svg.addEventListener('click', event => {
    if (!points.length) return;
    const box = svg.getBoundingClientRect(), recall = ((event.clientX - box.left) / box.width * 119 - 13) / side;
    const nearest = points.reduce((a, b) => (Math.abs(b.recall - recall) < Math.abs(a.recall - recall) ? b : a));
    choose({threshold: Math.floor(1000 * nearest.score) / 1000});
  });
  at('curve').replaceChildren(svg);
  const whose = state.label < 0 ? 'all classes together' : className(state.label);
  at('curve_note').textContent = points.length
    ? `Of ${whose}, at IoU 0.5, down to a score of ${report.least_score}. The point is the score above; press the `
      + 'curve to move it.'
    : 'Nothing to draw: no detection or no annotated object is chosen.';
}

// Confusion matrix

function showMatrix() {
  const matrix = confusionMatrix(report, view), side = report.classes.length + 1;
  const chosen = matrixClasses(matrix, side), rows = [...chosen, side - 1];
  const title = (i, last) => (i < side - 1 ? className(i) : last);
  const table = element('table', {class: chosen.length > 5 ? 'matrix many' : 'matrix'},
    element('thead', {}, element('tr', {}, element('th', {}), ...rows.map(i =>
      element('th', {scope: 'col'}, element('span', {title: title(i, 'not found')}, shortened(title(i, 'not found'), 16)))))));
  const largest = [0, 0];  // wrong, right
  for (const row of rows) for (const column of rows) {
    largest[Number(row === column)] = Math.max(largest[Number(row === column)], matrix[row * side + column]);
  }
  const body = element('tbody');
  for (const row of rows) {
    body.append(element('tr', {}, element('th', {scope: 'row', title: title(row, 'background')},
      shortened(title(row, 'background'), 16)),
    ...rows.map(column => matrixCell(row, column, matrix[row * side + column], side, largest[Number(row === column)]))));
  }
  table.append(body);
  at('matrix').replaceChildren(table);
  at('matrix_note').textContent = 'Rows: annotated as. Columns: detected as, whatever the class, at IoU 0.5; some that '
    + 'are not found have a poor box. Press a number to see its images.' + (chosen.length < side - 1
    ? ` Of ${side - 1} classes, the ${chosen.length} that are most often confused; choose a class for its own.` : '');
}

/** All classes, or where they are many the chosen one and those most often confused. */
function matrixClasses(matrix, side) {
  const classes = [...Array(side - 1).keys()];
  if (classes.length <= READABLE_CLASSES) return classes;
  const confused = classes.map(i => classes.reduce((sum, j) =>
    sum + (i === j ? 0 : matrix[i * side + j] + matrix[j * side + i]), i === state.label ? Infinity : 0));
  return classes.sort((a, b) => confused[b] - confused[a] || a - b).slice(0, READABLE_CLASSES).sort((a, b) => a - b);
}

function matrixCell(row, column, count, side, largest) {
  if (row === side - 1 && column === side - 1) return element('td');
  const pressed = state.cell !== null && state.cell[0] === row && state.cell[1] === column;
  const text = row === side - 1 ? `${count} detected as ${className(column)} where nothing is annotated`
    : `${count} ${className(row)} ${column === side - 1 ? 'not found' : `detected as ${className(column)}`}`;
  const button = element('button', {type: 'button', 'aria-pressed': pressed, 'aria-label': text, title: text,
    'data-cell': `${row},${column}`, class: count ? '' : 'none'}, `${count}`);
  button.addEventListener('click', () => choose({cell: pressed ? null : [row, column], kind: -1}));
  const cell = element('td', {class: row === column ? 'right' : 'wrong'}, button);
  cell.style.setProperty('--share', largest ? Math.sqrt(count / largest) : 0);
  return cell;
}

// Classes

function showClasses(counts) {
  const head = ['class', 'AP', 'objects', 'precision', 'recall', 'F1', 'best score'];
  const rows = report.classes.map((entry, i) => {
    const {precision, recall, f1} = quality(counts[i]);
    const name = element('button', {type: 'button', class: 'name', 'aria-pressed': state.label === i},
      element('i', {class: 'swatch'}), entry.name);
    name.firstChild.style.background = entry.colour;
    name.addEventListener('click', () => choose({label: state.label === i ? -1 : i}));
    const best = element('td');
    if (entry.best_score !== null) {
      const button = element('button', {type: 'button', disabled: entry.best_score < report.least_score && ''},
        entry.best_score.toFixed(3));
      button.addEventListener('click', () => choose({label: i, threshold: entry.best_score}));
      best.append(button);
    }
    return element('tr', {}, element('th', {scope: 'row'}, name), ...[percent(entry.ap),
      counts[i].boxes.toLocaleString('en'), percent(precision), percent(recall), percent(f1)].map(text =>
      element('td', {}, text)), best);
  });
  at('classes').replaceChildren(element('table', {}, element('thead', {}, element('tr', {}, ...head.map(text =>
    element('th', {scope: 'col'}, text)))), element('tbody', {}, ...rows)));
}

// Images: an empty card each, filled while it is near the window

const cards = report.names.map((name, image) => {
  const card = element('button', {type: 'button', class: 'card', 'aria-label': name});
  card.dataset.image = image;
  card.addEventListener('click', () => openLarge(image));
  return card;
});
const visible = new Set();
const observer = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    if (isIntersecting) { visible.add(target); fill(target); } else { visible.delete(target); target.replaceChildren(); }
  }
}, {rootMargin: '400px'});

function showGallery() {
  const old = at('gallery').children;
  if (old.length !== order.length || order.some((image, i) => old[i] !== cards[image])) {
    at('gallery').replaceChildren(...order.map(image => cards[image]));
  }
  visible.forEach(fill);
  const chosen = state.cell ? cellText(state.cell) : state.kind < 0 ? '' : OUTCOME_TEXTS[report.outcomes[state.kind]];
  at('found').textContent = plural(order.length, 'image') + (chosen && `: ${chosen}`);
  at('clear').hidden = !chosen && state.label < 0 && state.size < 0 && !state.search;
}

function cellText([row, column]) {
  const none = report.classes.length;
  return row === none ? `${className(column)} where nothing is annotated`
    : column === none ? `${className(row)}, not found` : `${className(row)}, detected as ${className(column)}`;
}

function fill(card) {
  const image = Number(card.dataset.image), items = itemsOf(report, state, view, emphasised, image);
  const summary = summaryOf(items);
  card.setAttribute('aria-label', `${report.names[image]}: ${summary}`);
  card.replaceChildren(element('span', {class: 'frame'}, drawing(report, image, items, pictureOf(image)),
    ...(pictureOf(image) ? [] : [element('span', {class: 'absent'}, 'picture not in this file')])),
  element('span', {class: 'file', title: report.names[image]}, report.names[image]),
  element('span', {class: 'summary'}, summary));
}

function summaryOf(items) {
  const counts = new Map();
  for (const item of items) {
    const text = isWrong(report, item) && outcomeText(report, item);
    if (text) counts.set(text, (counts.get(text) ?? 0) + 1);
  }
  return [...counts].map(([text, count]) => `${count} ${text}`).join(', ') || 'nothing wrong';
}

function pictureOf(image) {
  const name = withSlashes(report.names[image]), small = report.pictures[image], inside = withoutFolders(name);
  const opened = openedFiles.get(name) ?? (namesakes.get(inside) === 1 ? openedFiles.get(inside) : undefined);
  return opened ?? (small && `data:image/jpeg;base64,${small}`);
}

function openFolder(files) {
  for (const file of files) {
    const address = URL.createObjectURL(file), inside = file.webkitRelativePath.split('/').slice(1).join('/');
    openedFiles.set(inside || file.name, address);
  }
  update();
}

// One image, large

let current = 0;

function openLarge(image) {
  current = image;
  at('large').showModal();
  showLarge();
}

function step(by) {
  const place = order.indexOf(current);
  const next = place < 0 ? order[0] : order[(place + by + order.length) % order.length];
  if (next === undefined) return;
  current = next;
  showLarge();
}

function showLarge() {
  const items = itemsOf(report, state, view, emphasised, current), place = order.indexOf(current);
  at('large_title').textContent = report.names[current];
  at('large_place').textContent = place < 0 ? '' : `${place + 1} of ${order.length}`;
  const svg = drawing(report, current, items, pictureOf(current));
  at('large_picture').replaceChildren(svg);
  addLabels(report, svg, items);
  const rows = items.map((item, number) => {
    const wrong = isWrong(report, item);
    const swatch = element('i', {class: item.kind === 'detection' ? 'swatch' : 'swatch dashed'});
    if (item.kind === 'detection') swatch.style.background = report.classes[item.label].colour;
    const row = element('tr', {tabindex: 0, class: wrong ? 'wrong' : ''}, element('td', {}, swatch, className(item.label)),
      element('td', {}, item.score === undefined ? 'annotated' : item.score.toFixed(3)),
      element('td', {}, outcomeText(report, item)));
    const light = on => svg.querySelectorAll(`[data-item="${number}"]`).forEach(g => g.classList.toggle('lit', on));
    for (const [event, on] of [['mouseenter', true], ['focus', true], ['mouseleave', false], ['blur', false]]) {
      row.addEventListener(event, () => light(on));
    }
    return row;
  });
  at('large_items').replaceChildren(element('table', {}, element('tbody', {}, ...rows)));
}

function closeLarge() {
  cards[current].focus();
}

// Start

function choices(select, texts) {
  select.replaceChildren(element('option', {value: -1}, 'all'), ...texts.map((text, i) =>
    element('option', {value: i}, text)));
}

function start() {
  const {stats} = report, images = report.names.length;
  at('stats').append(element('b', {}, `AP ${percent(stats.AP)}`), ` · AP50 ${percent(stats.AP50)} · AP75 `
    + `${percent(stats.AP75)} · ${plural(images, 'image')}, ${plural(report.truth.label.length, 'object')}, `
    + (report.classes.length === 1 ? '1 class' : `${report.classes.length} classes`));
  at('facts').textContent = Object.entries(report.facts).map(([name, value]) => `${name}: ${value}`).join(' · ');
  choices(at('label'), report.classes.map(entry => shortened(entry.name, 40)));
  const limits = ['below 32² px', '32² to 96² px', 'above 96² px'];
  choices(at('size'), report.sizes.map((name, i) => `${name}, ${limits[i]}`));
  const pictures = Object.keys(report.pictures).length;
  at('note').textContent = (pictures < images ? `Pictures of ${plural(pictures, 'image')} of ${images.toLocaleString('en')} `
    + `are inside this file: those most wrong at a score of ${report.score}. "Open the image folder" shows the others, `
    + 'and all in full size; nothing leaves this computer. ' : '')
    + (report.left_out ? `${plural(report.left_out, 'detection')} with scores below ${report.least_score} are left out. `
      : '') + (report.beyond_limit ? `${plural(report.beyond_limit, 'detection')} count here but not in AP, for which COCO `
      + `takes only the best ${report.limit} of a class in an image. ` : '') + 'Numbers are at IoU 0.5; the kinds of errors are those of summary.md.';
  for (const id of ['slider', 'threshold']) at(id).min = report.least_score;

  const listen = (id, event, action) => at(id).addEventListener(event, action);
  const setThreshold = ({target}) => {
    const value = Number(target.value);
    if (target.value === '' || !(value >= report.least_score && value <= 1)) return;
    state.threshold = value;
    at(target.id === 'slider' ? 'threshold' : 'slider').value = value;
    updateSoon();
  };
  listen('slider', 'input', setThreshold);
  listen('threshold', 'input', setThreshold);
  listen('threshold', 'change', () => { at('threshold').value = state.threshold; });
  listen('controls', 'submit', event => event.preventDefault());
  for (const name of ['label', 'size']) listen(name, 'change', () => choose({[name]: Number(at(name).value)}));
  listen('sort', 'change', () => choose({sort: at('sort').value}));
  listen('search', 'input', () => { state.search = at('search').value; updateSoon(); });
  listen('truth', 'change', () => choose({truth: at('truth').checked}));
  listen('clear', 'click', () => choose({label: -1, size: -1, kind: -1, cell: null, search: ''}));
  listen('folder', 'change', () => openFolder(at('folder').files));
  listen('previous', 'click', () => step(-1));
  listen('next', 'click', () => step(1));
  listen('close', 'click', () => at('large').close());
  listen('large', 'close', closeLarge);
  listen('large', 'keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === 'ArrowRight') step(1);
    else if (event.key === 'ArrowLeft') step(-1);
    else if (event.key === 'g' || event.key === 'G') choose({truth: !state.truth});
    else return;
    event.preventDefault();
  });
  addEventListener('resize', () => { if (at('large').open) showLarge(); });
  cards.forEach(card => observer.observe(card));
  choose({});
}

start();
