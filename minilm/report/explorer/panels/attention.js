// attention.js: where each head looks. Top-level names: attentionPart, headThumbnails, showThumbnails.

const SMALLEST_LABEL = 6.5; // pixels of a cell of the heat map, from which on the characters stand beside it

function attentionPart(page, { choose }) {
  const map = page.find("heat-map");
  const lines = page.find("attention-lines");
  const choices = page.find("heads");
  let head = [0, 0]; // layer, head
  let shown = null; // the view and the position that were shown last
  const strip = page.find("attention-text");
  const text = new CharacterText(strip, "Attention; the arrow keys choose a character", index =>
    choose(shown.view.start + index));

  function refresh() {
    const { heads } = page.current;
    const all = heads.flatMap((layer, l) => layer.map((scores, h) => ({ l, h, ...scores })));
    const strongest = kind => all[descending(all.map(scores => scores[kind]))[0]];
    headThumbnails(choices, page.current.config, (layer, index) => {
      head = [layer, index];
      show(shown.view);
      showPlace(shown.view, shown.position);
    });
    head = [0, 0];
    if (!heads.length) return;
    [...choices.querySelectorAll("button")].forEach((button, index) => {
      const { previous, induction } = all[index];
      const scores = `before\u00a0${percent(previous)}, copies\u00a0${percent(induction)}`;
      button.append(element("small", { textContent: scores }));
      button.ariaLabel += `: ${scores}`;
    });
    const [previous, induction] = [strongest("previous"), strongest("induction")];
    head = [previous.l, previous.h];
    const name = ({ l, h }) => `head ${h + 1} of layer ${l + 1}`;
    page.find("heads-best").textContent =
      `In a passage of the test split, ${name(previous)} looks most at the character before, with ` +
      `${percent(previous.previous)} of its attention; ${name(induction)} copies most: in random characters ` +
      `that are repeated, ${percent(induction.induction)} of its attention is on what came next the first time.`;
  }

  function show(view) {
    showThumbnails(choices, view.attention, view.time, head);
    text.show(view.characters.slice(view.start));
  }

  function weightsOf(view) {
    const { time } = view;
    return view.attention[head[0]].subarray(head[1] * time * time, (head[1] + 1) * time * time);
  }

  function showPlace(view, position) {
    shown = { view, position };
    const { time, start, characters } = view;
    const weights = weightsOf(view);
    drawMap(view, position, weights);
    text.choose(position);
    const row = weights.subarray(position * time, (position + 1) * time);
    const spans = [...strip.children];
    // No weight is on what comes later.
    spans.forEach((span, index) => span.style.setProperty("--share", `${100 * shade(row[index])}%`));
    const most = descending(row.subarray(0, position + 1)).slice(0, 4);
    drawLines(spans, row, position, most);
    const named = most.map(index => {
      const where = index < position ? `${position - index} before` : "itself";
      return `${visible(characters[start + index])} ${where} (${percent(row[index])})`;
    });
    const name = `Layer ${head[0] + 1}, head ${head[1] + 1}`;
    const summary = `${name}: ${visible(characters[start + position])} looks at ${named.join(", ")}.`;
    page.find("attention-place").textContent = summary;
    map.ariaLabel = `Heat map of ${time} by ${time} characters. ${summary}`;
  }

  function marginOf(time) {
    return (map.clientWidth - 16) / time < SMALLEST_LABEL ? 2 : 16;
  }

  // The weights enlarged, with the characters beside them where there is room, and the chosen row framed.
  function drawMap({ time, start, characters }, position, weights) {
    const ratio = window.devicePixelRatio;
    const width = map.clientWidth;
    const margin = marginOf(time);
    const cell = (width - margin) / time;
    map.width = map.height = Math.round(width * ratio);
    const context = map.getContext("2d");
    const small = element("canvas");
    drawAttention(small, weights, time);
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, margin, margin, cell * time, cell * time);
    context.fillStyle = context.strokeStyle = getComputedStyle(map).color;
    context.strokeRect(margin, margin + position * cell, (position + 1) * cell, cell);
    context.globalAlpha = 0.35;
    context.strokeRect(margin + 0.5, margin + 0.5, cell * time - 1, cell * time - 1);
    if (margin < 16) return;
    context.globalAlpha = 1;
    context.font = `${Math.min(12, cell + 1)}px ui-monospace, "DejaVu Sans Mono", monospace`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let i = 0; i < time; i++) {
      const sign = visible(characters[start + i]).slice(0, 2);
      context.fillText(sign, margin + (i + 0.5) * cell, margin / 2);
      context.fillText(sign, margin / 2, margin + (i + 0.5) * cell);
    }
  }

  // Curves from the chosen character to those that it looks at most, the stronger the thicker.
  function drawLines(spans, row, position, most) {
    const middle = span => [span.offsetLeft + Math.min(span.offsetWidth, 10) / 2, span.offsetTop + 3];
    const [x, y] = middle(spans[position]);
    const curves = most.filter(index => index !== position).map(index => {
      const [toX, toY] = middle(spans[index]);
      const height = Math.min(y, toY) - 12 - Math.min(26, Math.abs(x - toX) / 8);
      return drawing("path", {
        d: `M${x} ${y}Q${(x + toX) / 2} ${height} ${toX} ${toY}`,
        "stroke-width": 1 + 3 * row[index],
        "stroke-opacity": Math.min(1, 0.4 + row[index]),
      });
    });
    lines.replaceChildren(...curves);
  }

  map.onclick = event => {
    const margin = marginOf(shown.view.time);
    const row = Math.floor(((event.offsetY - margin) / (map.clientHeight - margin)) * shown.view.time);
    choose(shown.view.start + Math.max(0, Math.min(shown.view.time - 1, row)));
  };
  return { refresh, show, showPlace };
}

// A small heat map for each head, a layer in each line; buttons, if something happens when one is chosen.
function headThumbnails(container, config, onChoose = null) {
  const layers = Array.from({ length: config.num_layers }, (_, layer) =>
    element("div", { className: "layer" },
      element("span", { className: "layer-name", textContent: `Layer ${layer + 1}` }),
      ...Array.from({ length: config.num_heads }, (_, head) =>
        element(onChoose ? "button" : "div", {
          className: "head",
          ariaLabel: `Layer ${layer + 1}, head ${head + 1}`,
          role: onChoose ? null : "img",
          onclick: () => onChoose?.(layer, head),
        }, element("canvas"), element("span", { textContent: `Head ${head + 1}` }))),
    ));
  container.style.setProperty("--heads", config.num_heads);
  container.replaceChildren(...layers);
}

function showThumbnails(container, attention, time, chosen = []) {
  attention.forEach((weights, layer) => {
    [...container.children[layer].querySelectorAll(".head")].forEach((thumbnail, head) => {
      drawAttention(thumbnail.querySelector("canvas"), weights.subarray(head * time * time), time);
      if (thumbnail.tagName === "BUTTON") thumbnail.ariaPressed = layer === chosen[0] && head === chosen[1];
    });
  });
}
