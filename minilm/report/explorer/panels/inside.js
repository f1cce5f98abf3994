// inside.js: the text that is looked into, and the surprise of its characters. Top-level names: insidePanel.

const MOST_BITS = 8; // from which on all characters have the same color, as in surprisal.html

function insidePanel(page, written) {
  const [input, note] = ["inside-text", "inside-note"].map(page.find);
  const label = "Surprise; the arrow keys choose a character";
  const text = new CharacterText(page.find("surprise-text"), label, choose);
  const off = { heads: [], mlps: [] };
  // What the parts show: `characters` and their `nats`; and, of those from `start` on, which the model reads
  // at once, `ids`, `logits`, `attention` and `lens`. `chosen` is an index into `characters`.
  let view = null;
  const read = newest(async () => {
    const { model, client, current: { config } } = page;
    const characters = latest(input.value);
    const start = Math.max(0, characters.length - config.block_size);
    const cut = "attention and what is below it show the text";
    note.textContent = describeText(input.value, page.current.vocabulary, config.block_size, cut);
    for (const card of page.find("inside").querySelectorAll(".card")) card.hidden = !characters.length;
    if (!characters.length) {
      note.textContent = "There is nothing to show: write a text of at least one character.";
      return;
    }
    const all = client.encode(characters.join(""), model);
    const ids = all.slice(start);
    const nats = await client.surprisal(all, { model, off });
    const inside = await client.inside(ids, { model, off });
    const same = view && view.characters.join("") === characters.join("");
    const chosen = same ? view.chosen : characters.length - 1;
    view = { characters, start, ids, nats, ...inside, chosen, size: config.vocab_size, time: ids.length };
    await Promise.all(parts.map(part => part.load?.(view)));
    show();
  });

  const makers = [attentionPart, switchesPart, lensPart, neighborsPart];
  const parts = makers.map(part => part(page, { choose, switched: read, off }));

  function choose(index) {
    view.chosen = index;
    showPlace();
  }

  function show() {
    text.show(view.characters, (span, index) => {
      const bits = view.nats[index] / Math.LN2;
      span.style.setProperty("--share", `${(100 * Math.min(bits || 0, MOST_BITS)) / MOST_BITS}%`);
      const name = spoken(view.characters[index]);
      span.title = index ? `${name}: ${bits.toFixed(1)} bits` : `${name}: nothing comes before it`;
      span.classList.toggle("unknown", !page.knows(view.characters[index]));
    });
    for (const part of parts) part.show?.(view);
    showPlace();
  }

  function showPlace() {
    const { characters, chosen, nats } = view;
    text.choose(chosen);
    const bits = nats[chosen] / Math.LN2;
    const context = characters.slice(Math.max(0, chosen - 12), chosen).map(visible).join("");
    const code = textContent => element("code", { className: "context", textContent });
    page.find("surprise-place").replaceChildren(...(chosen
      ? [code(visible(characters[chosen])), " after ", code(context),
        `: ${bits.toFixed(2)} bits, a probability of ${percent(Math.exp(-nats[chosen]))}`,
        chosen < view.start ? "; the parts below begin after it" : ""]
      : ["Nothing comes before the first character, so it has no surprise."]));
    // The place among the characters that the model reads at once.
    const position = Math.max(0, chosen - view.start);
    for (const part of parts) part.showPlace?.(view, position);
  }

  function give(content) {
    input.value = content;
    read();
  }

  input.oninput = read;
  page.find("inside-test").onclick = () => give(passage(page));
  page.find("inside-written").onclick = () => give(written());
  page.find("inside-repeat").onclick = () => {
    // No white space, which would make the repetition hard to see.
    const known = page.current.vocabulary.filter((character, id) => id && /\S/.test(character));
    const once = Array.from({ length: Math.max(1, Math.min(24, page.current.config.block_size >> 1)) },
      () => known[Math.floor(Math.random() * known.length)]).join("");
    give(once + once);
  };
  return {
    refresh() {
      off.heads = [];
      off.mlps = [];
      for (const part of parts) part.refresh?.();
      if (!input.value) input.value = passage(page);
      read();
    },
    redraw: () => view && show(),
  };
}

// What the model has not been trained on, from the beginning of a word and not longer than it can read.
function passage(page, most = 120) {
  const from = page.current.test_text.search(/\s\S/) + 1;
  const length = Math.min(most, page.current.config.block_size);
  return Array.from(page.current.test_text.slice(from)).slice(0, length).join("");
}
