// parts.js: what several panels are made of. Top-level names: element, drawing, visible, spoken, percent,
// probabilitiesOf, descending, latest, describeText, newest, CharacterText, Bars, shade, drawAttention.

const MOST_CHARACTERS = 5000; // of a text; more take seconds at each key
const SIGNS = { " ": "␣", "\n": "⏎", "\t": "⇥" };
const SPOKEN = { " ": "space", "\n": "line break", "\t": "tab", "\ufffd": "unknown character" };

// An element with its properties and children. A string becomes a text node, so no text is ever run as HTML.
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// The same for SVG, which has attributes only.
function drawing(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A character as it can be seen where it stands alone, as `visible` in minilm/report/html.py.
function visible(character) {
  if (character in SIGNS) return SIGNS[character];
  if (/\p{M}/u.test(character)) return "\u25cc" + character;
  if (/[\p{C}\p{Z}]/u.test(character)) {
    return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  }
  return character;
}

// The same for a screen reader, which passes over white space.
function spoken(character) {
  return SPOKEN[character] ?? visible(character);
}

function percent(share) {
  if (share > 0 && share < 0.00005) return "<\u00a00.01\u00a0%";
  return (100 * share).toFixed(share >= 0.0995 || share === 0 ? 0 : share >= 0.001 ? 1 : 2) + "\u00a0%";
}

// softmax of one row of logits, (V).
function probabilitiesOf(logits, row, size) {
  const scores = logits.subarray(row * size, (row + 1) * size);
  const largest = scores.reduce((a, b) => Math.max(a, b));
  const powers = scores.map(score => Math.exp(score - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map(power => power / sum);
}

// The indices of values, that of the largest first.
function descending(values) {
  return [...values.keys()].sort((a, b) => values[b] - values[a]);
}

// The characters of a text, cut from the left.
function latest(text) {
  return Array.from(text).slice(-MOST_CHARACTERS);
}

// What a reader should know of a text that the model is given: what it lacks, and what it will not see.
function describeText(text, vocabulary, blockSize, whatIsCut) {
  const notes = [], typed = Array.from(text), characters = latest(text);
  const unknown = [...new Set(characters)].filter(character => !vocabulary.includes(character));
  if (unknown.length) {
    const named = unknown.slice(0, 5).map(visible).join(" ");
    const more = unknown.length > 5 ? ` and ${unknown.length - 5} more` : "";
    notes.push(`The model has never seen ${named}${more}: it reads the unknown character \ufffd there.`);
  }
  if (typed.length > blockSize) {
    const cut = typed.length - blockSize;
    notes.push(`The model reads ${blockSize} characters at once: ${whatIsCut} without the first ${cut}.`);
  }
  if (typed.length > MOST_CHARACTERS) notes.push(`Only the last ${MOST_CHARACTERS} are taken.`);
  return notes.join(" ");
}

// A function that runs `work` for the newest call only: those that come while it runs wait, and replace each
// other. Its promise ends when the call has been answered or replaced.
function newest(work) {
  let calls = 0;
  let last = Promise.resolve();
  return (...values) => {
    const call = ++calls;
    const run = () => call === calls && work(...values);
    return (last = last.then(run, run));
  };
}

// A text whose characters can be chosen, with the mouse or, as in a list box, with the arrow keys.
class CharacterText {
  constructor(container, label, onChoose) {
    Object.assign(container, { role: "listbox", tabIndex: 0, ariaLabel: label });
    this.container = container;
    this.characters = [];
    this.chosen = -1;
    this.onChoose = onChoose;
    container.onclick = event => {
      const index = [...container.children].indexOf(event.target);
      if (index >= 0) onChoose(index);
    };
    container.onkeydown = event => {
      const index = this.moved(event.key);
      if (index === undefined || !this.characters.length) return;
      event.preventDefault();
      if (index !== this.chosen) onChoose(Math.max(0, Math.min(this.characters.length - 1, index)));
    };
  }

  // `decorate(span, index)` sets a character's look and its title. What is there already is kept: a text that
  // grows by a few characters must not be built anew each time.
  show(characters, decorate = () => {}) {
    const { container } = this;
    let kept = 0;
    while (kept < characters.length && characters[kept] === this.characters[kept]) kept++;
    while (container.children.length > kept) container.lastChild.remove();
    const added = characters.slice(kept).map((character, index) =>
      element("span", {
        role: "option",
        id: `${container.id}-${kept + index}`,
        className: character === "\n" ? "newline" : "",
        textContent: character === "\n" ? "⏎\n" : character,
        ariaLabel: spoken(character),
      }),
    );
    container.append(...added);
    this.characters = characters;
    [...container.children].forEach(decorate);
  }

  choose(index) {
    const { children } = this.container;
    children[this.chosen]?.removeAttribute("aria-selected");
    this.chosen = index;
    children[index]?.setAttribute("aria-selected", "true");
    if (children[index]) this.container.setAttribute("aria-activedescendant", children[index].id);
    else this.container.removeAttribute("aria-activedescendant");
    if (document.activeElement === this.container) children[index]?.scrollIntoView({ block: "nearest" });
  }

  // Where a key leads from the chosen character; undefined for other keys.
  moved(key) {
    const from = this.chosen < 0 ? this.characters.length : this.chosen;
    if (key === "ArrowLeft") return from - 1;
    if (key === "ArrowRight") return from + 1;
    if (key === "Home") return 0;
    if (key === "End") return this.characters.length - 1;
    if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
    // The nearest character of the next line in that direction.
    const spans = [...this.container.children];
    const here = spans[Math.min(from, spans.length - 1)];
    const step = key === "ArrowUp" ? -1 : 1;
    let index = spans.indexOf(here);
    while (spans[index] && spans[index].offsetTop === here.offsetTop) index += step;
    if (!spans[index]) return from;
    const { offsetTop: line } = spans[index];
    const distance = ({ offsetTop, offsetLeft }) =>
      offsetTop === line ? Math.abs(offsetLeft - here.offsetLeft) : Infinity;
    return spans.reduce((best, span, i) => (distance(span) < distance(spans[best]) ? i : best), index);
  }
}

// Rows of a character and its bars. The rows are kept and changed, so that a button does not lose the focus.
class Bars {
  // `onChoose` makes buttons of the rows, which `action` names: "Write e".
  constructor(list, onChoose = null, action = "Write") {
    Object.assign(this, { list, onChoose, action });
  }

  // rows: {character, before, after, label, cut}; `before` may be left out, `label` or `cut`, what took the
  // character away, stand instead of the percentage.
  show(rows, { marked = null, scale = null } = {}) {
    const largest = scale ?? Math.max(1e-9, ...rows.map(row => Math.max(row.before ?? 0, row.after)));
    while (this.list.children.length < rows.length) this.list.append(this.row());
    while (this.list.children.length > rows.length) this.list.lastChild.remove();
    rows.forEach((row, index) => {
      const line = this.list.children[index].firstChild;
      const [sign, track, value] = line.children;
      const shown = row.label ?? row.cut ?? percent(row.after);
      sign.textContent = visible(row.character);
      value.textContent = shown;
      value.classList.toggle("cut", row.cut !== undefined);
      line.classList.toggle("marked", row.character === marked);
      const [before, after] = track.children;
      before.hidden = row.before === undefined;
      before.style.width = `${(100 * (row.before ?? 0)) / largest}%`;
      after.style.width = `${(100 * Math.max(0, row.after)) / largest}%`;
      const first = row.before === undefined ? "" : `${percent(row.before)}, then `;
      line.title = `${spoken(row.character)}: ${first}${shown}`;
      if (this.onChoose) {
        line.onclick = () => this.onChoose(row.character);
        line.ariaLabel = `${this.action} ${line.title}`;
      }
    });
  }

  row() {
    const bars = [element("i", { className: "before" }), element("i")];
    const track = element("span", { className: "track" }, ...bars);
    return element(
      "li",
      {},
      element(this.onChoose ? "button" : "div", { className: "row" },
        element("span", { className: "sign" }), track, element("span", { className: "value" })),
    );
  }
}

// How much color a share of a character's attention gets, 0 to 1. The root makes small shares visible; a
// quarter has the full color already.
function shade(weight) {
  return Math.sqrt(Math.min(1, 4 * weight));
}

// One head's weights, (T, T), a pixel for each: the browser enlarges it.
function drawAttention(canvas, weights, time) {
  canvas.width = canvas.height = time;
  const context = canvas.getContext("2d");
  const image = context.createImageData(time, time);
  const color = getComputedStyle(document.body).getPropertyValue("--attention").split(" ").map(Number);
  for (let i = 0; i < time * time; i++) image.data.set([...color, 255 * shade(weights[i])], 4 * i);
  context.putImageData(image, 0, 0);
}
